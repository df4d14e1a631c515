"""A pass of DeepSeek-V4 on a card: what NativePass does on a CPU, with the same bits."""

from collections.abc import Hashable, Sequence
from functools import partial

import torch

from dspark.checkpoints.deepseek_v4_target import TargetWeights
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.deepseek_v4.cache import RequestCaches, Stretch
from dspark.models.deepseek_v4.card_layer import CardLayer, FeedRows, Step
from dspark.models.deepseek_v4.card_memory import (
    CardMemory,
    card_block,
    stream_factors,
    whole_matrices,
)
from dspark.models.deepseek_v4.native_pass import FEWEST_ROWS, row_records
from dspark.models.deepseek_v4.pass_graphs import pass_graphs
from dspark.models.deepseek_v4.rotation import RotationTable
from dspark_kernels.deepseek_v4.file_matrix import multiply_rows
from dspark_kernels.deepseek_v4.norm_turn import norm_turn
from dspark_kernels.deepseek_v4.streams import open_streams

FEWEST_POSITIONS = 4096  # of the tables of angles


class CardPass:
    def __init__(
        self,
        config: DeepseekV4TargetConfig,
        weights: TargetWeights,
        tap_layers: Sequence[int],
        device: torch.device,
    ) -> None:
        self._config, self._taps, self._device = config, tuple(tap_layers), device
        self._layers = [
            CardLayer(config, index, card_block(block, device))
            for index, block in enumerate(weights.blocks)
        ]
        self._matrices = whole_matrices(weights, device)
        tensors = weights.tensors
        scales = tensors["hc_head_scale"].expand(config.num_streams)
        self._factors = stream_factors(scales, tensors["hc_head_base"]).to(device)
        self._norm = tensors["norm.weight"].to(device)
        self._rotations = [
            RotationTable(rope, config.rope_dim)
            for rope in (config.window_rope, config.compressed_rope)
        ]
        self._turns: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._scores: torch.Tensor | None = None
        self._graphs = pass_graphs(device)
        self.memory = CardMemory(config, FEWEST_ROWS, len(self._taps), device)

    def run(
        self,
        embedded: torch.Tensor,
        token_ids: Sequence[int],
        caches: RequestCaches,
        stretches: Sequence[Stretch],
        feed: FeedRows,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As NativePass.run; `embedded` [N, H] on the card, token ids on the host. `feed` adds
        routed experts, wherever they are."""
        num_rows = len(embedded)
        memory = self._fit(num_rows)
        memory.streams[:num_rows] = embedded.unsqueeze(1)
        step = self._step(token_ids, caches, stretches)
        feed.begin(num_rows)
        try:
            hidden = self._graphs.run(
                self._key(step, feed), partial(self._launch, step, num_rows, feed)
            )
        except BaseException as error:
            feed.cancel(error)
            raise
        hidden, taps = hidden.clone(), memory.taps[:num_rows].clone()
        feed.finish()
        return hidden, taps

    def _key(self, step: Step, feed: FeedRows) -> Hashable | None:
        """Of what a captured pass holds on to; None where it cannot be captured."""
        if feed.key is None:
            return None
        scores = [] if step.scores is None else [step.scores]
        held = [*step.halves, *scores, *(table for turn in step.turns for table in turn)]
        sizes = (len(step.rows), self.memory.num_rows)
        return (*sizes, feed.key, *((each.data_ptr(), *each.stride()) for each in held))

    def _launch(self, step: Step, num_rows: int, feed: FeedRows) -> torch.Tensor:
        """All layers, and the last hidden states [N, H]: nothing waits for the card."""
        memory, hidden = self.memory, self._config.hidden_size
        for index, layer in enumerate(self._layers):
            tap = None
            if index in self._taps:
                start = self._taps.index(index) * hidden
                tap = memory.taps[:num_rows, start : start + hidden]
            layer(step, memory, num_rows, feed, tap)
        return self._last(num_rows)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, H] -> logits [N, V]."""
        weight = self._matrices["head.weight"]
        return multiply_rows(hidden, weight, hidden.new_empty(len(hidden), weight.shape[0]))

    def routes(self, num_rows: int) -> torch.Tensor:
        """As NativePass.routes, on the host."""
        return self.memory.routes[:, :num_rows].cpu().clone()

    def _step(
        self, token_ids: Sequence[int], caches: RequestCaches, stretches: Sequence[Stretch]
    ) -> Step:
        config, longest = self._config, max(each.end for each in stretches)
        records = row_records(token_ids, caches, stretches, config.window)
        rows = self.memory.rows[: len(records)]
        rows.copy_(torch.tensor(records))
        if not self._turns or len(self._turns[0][0]) < longest:
            # as addresses stay, so do captured passes
            length = max(FEWEST_POSITIONS, 1 << (longest - 1).bit_length())
            tables = [each.tables(length) for each in self._rotations]
            self._turns = [(cos.to(self._device), sin.to(self._device)) for cos, sin in tables]
        return Step(rows, self._turns, caches.halves(), self._scores_for(longest))

    def _scores_for(self, longest: int) -> torch.Tensor | None:
        """Memory for the indexer's scores, None where every row sees few entries."""
        config = self._config
        ratios = [r for r, s in zip(config.ratios, config.selects, strict=True) if s]
        most = longest // min(ratios) if ratios else 0
        if most <= config.index_top:
            return None
        wanted = (self.memory.num_rows, 1 << (most - 1).bit_length())
        if self._scores is None or self._scores.shape != wanted:
            self._scores = torch.empty(wanted, device=self._device)
        return self._scores

    def _fit(self, num_rows: int) -> CardMemory:
        """Memory for so many rows."""
        if num_rows > self.memory.num_rows:
            wanted = 1 << (num_rows - 1).bit_length()
            self.memory = CardMemory(self._config, wanted, len(self._taps), self._device)
        return self.memory

    def _last(self, num_rows: int) -> torch.Tensor:
        """The streams to one hidden state [N, H], normed."""
        config, memory = self._config, self.memory
        streams, units = memory.streams[:num_rows], memory.units[:num_rows]
        projected, eps = memory.projected[:num_rows], config.rms_norm_eps
        norm_turn(streams.flatten(1), units, None, eps)
        multiply_rows(units, self._matrices["hc_head_fn"], projected)
        out = torch.empty(num_rows, config.hidden_size, device=self._device)
        open_streams(
            streams, projected, self._factors, self._norm, out, None, 0, config.stream_eps, eps
        )
        return out
