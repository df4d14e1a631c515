"""Routed experts of a long prompt: whole layers stream through two buffers on the card, one filled
while the layer in the other runs. From some dozens of rows on nearly every expert is touched."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from dspark.checkpoints.deepseek_v4_target import Expert
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.card_expert_store import expert_bank
from dspark.models.deepseek_v4.card_experts import ExpertRows
from dspark.models.expert_store import copied, expert_bytes, slots_of
from dspark_kernels.deepseek_v4.fp4_experts import add_experts
from dspark_kernels.deepseek_v4.route import Segments

BUFFERS = 2

Find = Callable[[int, int], Expert]  # layer, number


class StreamedExperts:
    """Of passes of many rows. `find`: where an expert is at present, on the card or in its file."""

    @torch.inference_mode(False)
    def __init__(
        self, config: DeepseekV4TargetConfig, like: Expert, find: Find, device: torch.device
    ) -> None:
        self._config, self._find, self._device = config, find, device
        size = (BUFFERS, config.num_experts, expert_bytes(like))
        memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._banks = [expert_bank(each, like) for each in memory]
        self._slots: Sequence[Sequence[Expert]] = [slots_of(each, like) for each in memory]
        self._every = torch.arange(config.num_experts, dtype=torch.int32, device=device)
        self._rows: ExpertRows | None = None
        self._copies = _Copies(device)
        self._filled: dict[int, Future[None]] = {}
        self._is_cancelled = False

    key = None  # it waits for every layer's router

    def begin(self, num_rows: int) -> None:
        """Before the first layer."""
        if self._rows is None or self._rows.num_rows < num_rows:
            self._rows = ExpertRows(self._config, num_rows, self._device)
        self._is_cancelled = False
        for layer in range(min(BUFFERS, self._config.num_layers)):
            self._begin_fill(layer)

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
        """As CardExperts.tell. Raises what copying raised."""
        rows = self._rows
        assert rows is not None
        self._filled.pop(layer).result()
        self._copies.wait(layer % BUFFERS)
        segments = rows.group(route, self._every)
        most = int(segments.words[:, 2].max())  # waits for the router; so few launches are idle
        bank = self._banks[layer % BUFFERS]
        rows.feed(x, segments, bank, self._config.swiglu_limit, most)
        self._copies.used(layer % BUFFERS)
        if layer + BUFFERS < self._config.num_layers:
            self._begin_fill(layer + BUFFERS)
        return rows.said, segments

    def finish(self) -> None:
        """After the last layer was launched."""

    def cancel(self, error: BaseException) -> None:
        """Instead of `finish`: returns once nobody writes to the buffers."""
        self._is_cancelled = True
        for filled in self._filled.values():
            filled.exception()
        self._filled.clear()

    def close(self) -> None:
        self._copies.close()

    def _begin_fill(self, layer: int) -> None:
        self._filled[layer] = self._copies.run(layer % BUFFERS, lambda: self._fill(layer))

    def _fill(self, layer: int) -> None:
        for number, slot in enumerate(self._slots[layer % BUFFERS]):
            if self._is_cancelled:
                return
            copied(self._find(layer, number), slot)


class _Copies:
    """A thread that copies, on a stream of its own where the device has streams: after what used a
    buffer last, before what uses it next."""

    def __init__(self, device: torch.device) -> None:
        self._thread = ThreadPoolExecutor(1, "expert layers")
        self._stream: torch.cuda.Stream | None = None
        self._ready: list[torch.cuda.Event] = []
        self._used: list[torch.cuda.Event] = []
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._ready, self._used = ([torch.cuda.Event() for _ in range(BUFFERS)] for _ in "ru")

    def run(self, buffer: int, copy: Callable[[], None]) -> Future[None]:
        return self._thread.submit(self._copy, buffer, copy)

    def wait(self, buffer: int) -> None:
        """What the caller's stream does next comes after the copy."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(self._ready[buffer])

    def used(self, buffer: int) -> None:
        """What the caller's stream has done used the buffer."""
        if self._stream is not None:
            self._used[buffer].record(torch.cuda.current_stream(self._stream.device))

    def close(self) -> None:
        self._thread.shutdown()

    def _copy(self, buffer: int, copy: Callable[[], None]) -> None:
        if self._stream is None:
            copy()
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._used[buffer])
            copy()
            self._ready[buffer].record(self._stream)
