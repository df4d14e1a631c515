"""A pass of DeepSeek-V4 on a card: what NativePass does on a CPU, with the same bits."""

from collections.abc import Sequence

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
from dspark.models.deepseek_v4.rotation import RotationTable
from dspark_kernels.deepseek_v4.file_matrix import multiply_rows
from dspark_kernels.deepseek_v4.norm_turn import norm_turn
from dspark_kernels.deepseek_v4.streams import open_streams


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
            self._run_layers(step, num_rows, feed)
        except BaseException as error:
            feed.cancel(error)
            raise
        hidden, taps = self._last(num_rows), memory.taps[:num_rows].clone()
        feed.finish()
        return hidden, taps

    def _run_layers(self, step: Step, num_rows: int, feed: FeedRows) -> None:
        memory, hidden = self.memory, self._config.hidden_size
        for index, layer in enumerate(self._layers):
            tap = None
            if index in self._taps:
                start = self._taps.index(index) * hidden
                tap = memory.taps[:num_rows, start : start + hidden]
            layer(step, memory, num_rows, feed, tap)

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
        rows = torch.tensor(row_records(token_ids, caches, stretches, config.window)).to(
            self._device
        )
        if not self._turns or len(self._turns[0][0]) < longest:
            tables = [each.tables(longest) for each in self._rotations]
            self._turns = [(cos.to(self._device), sin.to(self._device)) for cos, sin in tables]
        ratios = [r for r, s in zip(config.ratios, config.selects, strict=True) if s]
        most = longest // min(ratios) if ratios else 0
        scores = None
        if most > config.index_top:
            scores = torch.empty(len(rows), most, device=self._device)
        return Step(rows, self._turns, caches.halves(), scores)

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
