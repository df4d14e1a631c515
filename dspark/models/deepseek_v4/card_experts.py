"""Routed experts of a pass on a card: from its slots, or asked of the host, added in the order of
the route either way."""

from collections.abc import Hashable
from functools import partial

import torch

from dspark.checkpoints.deepseek_v4_cache_layout import MAX_ROWS
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.errors import DSparkError
from dspark.models.card_expert_store import CardExpertStore
from dspark.models.deepseek_v4.missed_experts import (
    PATIENCE,
    MissedExperts,
    Question,
    answer_missing,
)
from dspark_kernels.deepseek_v4.fp4_experts import (
    CardRows,
    ExpertBank,
    add_experts,
    empty_rows,
    feed_segments,
    round_rows,
)
from dspark_kernels.deepseek_v4.host_exchange import ask_host, take_answers
from dspark_kernels.deepseek_v4.route import Segments, empty_segments, group_experts
from dspark_kernels.stream_flags import make_flags


class ExpertRows:
    """Memory for the experts of up to so many rows."""

    @torch.inference_mode(False)
    def __init__(
        self,
        config: DeepseekV4TargetConfig,
        num_rows: int,
        device: torch.device,
        top: int | None = None,
    ) -> None:
        """`top`: experts of a row, if not the config's."""
        top = top or config.experts_per_token
        pairs = num_rows * top
        self.num_rows = num_rows
        self.rounded = empty_rows(num_rows, config.hidden_size, device)
        self.inner = empty_rows(pairs, config.expert_size, device)
        self.segments = empty_segments(num_rows, top, config.num_experts, device)
        self.said = torch.empty(pairs, config.hidden_size, device=device)

    def group(self, route: torch.Tensor, slots: torch.Tensor) -> Segments:
        segments = self.segments.of(len(route))
        group_experts(route, slots, segments)
        return segments

    def feed(
        self,
        x: torch.Tensor,
        segments: Segments,
        bank: ExpertBank,
        limit: float,
        most: int | None = None,
    ) -> None:
        """What experts with a slot say of x [N, H]; `most` as of feed_segments."""
        rows = CardRows(self.rounded.codes[: len(x)], self.rounded.halves[: len(x)])
        round_rows(x, rows)
        feed_segments(rows, segments, bank, limit, self.inner, self.said, most)


class CardExperts:
    """Of passes of few rows. `begin` a pass, run its layers, `finish` it."""

    def __init__(
        self,
        config: DeepseekV4TargetConfig,
        store: CardExpertStore,
        device: torch.device,
        patience: float = PATIENCE,
    ) -> None:
        self._config, self._store, self._device = config, store, device
        try:
            self._flags = make_flags(config.num_layers, device, 2 * patience)
        except (OSError, AttributeError) as error:
            raise DSparkError(
                "the GPU's driver cannot let a stream wait for the host",
                "Use --device cpu, or a driver for Linux from 2023 on.",
            ) from error
        answer = partial(answer_missing, limit=config.swiglu_limit)
        self.missed = MissedExperts(store.layers, self._flags, answer, patience)
        self._rows: ExpertRows | None = None
        self._question: Question | None = None

    @property
    def key(self) -> Hashable | None:
        """As FeedRows."""
        return None if self._rows is None else self._rows.said.data_ptr()

    def begin(self, num_rows: int) -> None:
        """Before the first layer."""
        config = self._config
        if self._rows is None or self._rows.num_rows < num_rows:
            wanted = max(MAX_ROWS, 1 << (num_rows - 1).bit_length())
            self._rows = ExpertRows(config, wanted, self._device)
            sizes = (wanted, config.hidden_size, config.experts_per_token, config.num_experts)
            self._whole = Question(*sizes, pin=self._device.type == "cuda")
        self._question = self._whole.of(num_rows)
        self.missed.begin(self._question)

    def __call__(
        self,
        layer: int,
        x: torch.Tensor,
        route: torch.Tensor,
        shares: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """As FeedRows."""
        said, segments = self.tell(layer, x, route)
        add_experts(out, said, segments.places, shares)

    def tell(
        self, layer: int, x: torch.Tensor, route: torch.Tensor
    ) -> tuple[torch.Tensor, Segments]:
        """What experts say of pairs, by the places of the segments."""
        rows, question, store = self._rows, self._question, self._store
        assert rows is not None and question is not None
        segments = rows.group(route, store.table[layer])
        ask_host(x, segments, question.x, question.words, question.pair_rows)
        self._flags.ask(layer)
        rows.feed(x, segments, store.bank, self._config.swiglu_limit)
        self._flags.await_answer(layer)
        take_answers(question.answers, segments, rows.said)
        return rows.said, segments

    def finish(self) -> None:
        """After the last layer was launched. Raises what the host's part raised."""
        self.missed.finish()

    def cancel(self, error: BaseException) -> None:
        """Instead of `finish`, of a pass that failed."""
        self.missed.cancel(error)

    def close(self) -> None:
        self.missed.close()
