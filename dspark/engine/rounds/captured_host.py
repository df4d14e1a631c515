"""Rounds driven by the host over a target on pages, whose verification is captured.

The host reads each draft, as for Eagle3 heads, lookup and heads of other layouts. Uncaptured, the
hundreds of launches of a pass would take a host several times as long as the device, and drafting
would be slower than plain decoding.
"""

from collections.abc import Iterator, Sequence

import torch

from dspark.config import EngineConfig
from dspark.drafters.base import Drafter
from dspark.engine.rounds.cuda_graph import GraphedCall, GraphPool, graph_pool
from dspark.engine.rounds.host import HostRounds
from dspark.engine.rounds.page_room import FixedPageRoom, page_count, page_counts
from dspark.engine.schedule.parking import Parking
from dspark.engine.schedule.policies import Scheduler
from dspark.engine.schedule.sps_watch import SpsWatch
from dspark.events import LoadProgress
from dspark.kvcache.caches import PagedCache
from dspark.kvcache.row_pool import KVSlot
from dspark.targets.base import DeviceTarget, Pass
from dspark_kernels.backend import next_power_of_2
from dspark_kernels.paged_cache import PagedRows


class CapturedHostRounds(HostRounds):
    """As HostRounds, with the memory of a target on pages."""

    def __init__(
        self,
        target: DeviceTarget,
        cache: PagedCache,
        drafter: Drafter,
        scheduler: Scheduler,
        config: EngineConfig,
        parking: Parking | None = None,
        sps_watch: SpsWatch | None = None,
    ) -> None:
        super().__init__(target, drafter, scheduler, config, parking, sps_watch)
        rows = 1 + drafter.block_size
        room = FixedPageRoom(target, [cache], config, self.capacity, rows)
        self.room, self.capacity = room, room.capacity
        self._passes = CapturedPasses(target, cache, rows)

    @torch.inference_mode()
    def warm_up(self) -> Iterator[LoadProgress]:
        """As RoundRunner.warm_up."""
        return self._passes.warm_up()

    def _run(self, slots: Sequence[KVSlot], blocks: Sequence[torch.Tensor]) -> Pass:
        return self._passes(slots, blocks)


class CapturedPasses:
    """`verify` of a target, in passes of few shapes: of one row a request, or of a whole block."""

    def __init__(self, target: DeviceTarget, cache: PagedCache, block_rows: int) -> None:
        self._target, self._cache, self._block_rows = target, cache, block_rows
        self._pool = graph_pool(target.device)
        self._passes: dict[tuple[int, int, int], _CapturedPass] = {}

    def __call__(self, slots: Sequence[KVSlot], blocks: Sequence[torch.Tensor]) -> Pass:
        """As Target.verify; the next call overwrites it."""
        size = 1 if max(map(len, blocks)) == 1 else self._block_rows
        length = max(slot.length for slot in slots) + size
        return self._pass(len(slots), size, page_count(self._cache, length))(slots, blocks)

    def warm_up(self) -> Iterator[LoadProgress]:
        """Every shape of one request, so that nothing is captured in the middle of an answer."""
        counts = page_counts(self._cache)
        shapes = [(size, count) for size in (1, self._block_rows) for count in counts]
        for done, (size, count) in enumerate(shapes):
            yield LoadProgress("preparing the device", done, len(shapes))
            block = torch.zeros(size, device=self._target.device, dtype=torch.int64)
            with torch.inference_mode():
                self._pass(1, size, count)([self._cache.scratch], [block])

    def _pass(self, num_requests: int, size: int, num_pages: int) -> "_CapturedPass":
        limit = self._target.spec.max_rows or num_requests * size
        num_lanes = max(num_requests, min(next_power_of_2(num_requests), limit // size))
        shape = (num_lanes, size, num_pages)
        if shape not in self._passes:
            self._passes[shape] = _CapturedPass(self._target, self._cache, self._pool, *shape)
        return self._passes[shape]


class _CapturedPass:
    """`size` rows of each lane, of which a block may fill fewer; idle lanes work on scratch
    pages."""

    def __init__(
        self,
        target: DeviceTarget,
        cache: PagedCache,
        pool: GraphPool | None,
        num_lanes: int,
        size: int,
        num_pages: int,
    ) -> None:
        device = target.device
        self._target, self._cache = target, cache
        self._num_pages, self._size, self._num_lanes = num_pages, size, num_lanes
        self._ids = torch.zeros(num_lanes, size, device=device, dtype=torch.int64)
        self._places = torch.zeros(2, num_lanes, device=device, dtype=torch.int32)
        self._row_starts = torch.arange(num_lanes + 1, device=device, dtype=torch.int32) * size
        self._call = GraphedCall(self._run, (), pool)

    def __call__(self, slots: Sequence[KVSlot], blocks: Sequence[torch.Tensor]) -> Pass:
        """logits and taps of the blocks' own rows, request after request."""
        idle = self._num_lanes - len(slots)
        places = [
            [slot.index for slot in slots] + [self._cache.scratch.index] * idle,
            [slot.length for slot in slots] + [0] * idle,
        ]
        self._places.copy_(torch.tensor(places, dtype=torch.int32))
        rows: list[int] = []
        for lane, block in enumerate(blocks):
            self._ids[lane, : len(block)] = block
            rows += range(lane * self._size, lane * self._size + len(block))
        passed = self._call()
        if len(rows) == len(passed.logits):
            return passed
        kept = torch.tensor(rows, device=self._ids.device)
        return Pass(passed.logits.index_select(0, kept), passed.taps.index_select(0, kept))

    def _run(self) -> Pass:
        slots, starts = self._places
        shape = (self._row_starts, self._size, self._num_pages, True)
        rows = self._cache.over(PagedRows(slots, starts, *shape))
        return self._target.run(self._ids.flatten(), rows)
