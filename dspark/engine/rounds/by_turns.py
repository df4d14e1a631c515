"""Rounds that the device drives, and beside them those of requests whose logits the host must see.

Both use the same caches. Each step advances one of the two groups, in turn.
"""

from collections.abc import Sequence

import torch

from dspark.config import EngineConfig
from dspark.drafters.base import DeviceDrafter
from dspark.engine.request import ActiveRequest
from dspark.engine.rounds.captured_host import CapturedPasses
from dspark.engine.rounds.device import DeviceRounds
from dspark.engine.rounds.host import HostRounds
from dspark.engine.rounds.round_runner import Outcome
from dspark.engine.schedule.parking import Parking
from dspark.engine.schedule.policies import Scheduler
from dspark.engine.schedule.sps_watch import SpsWatch
from dspark.kvcache.caches import PagedCache
from dspark.kvcache.row_pool import KVSlot
from dspark.targets.base import DeviceTarget, Pass


class DeviceAndHostRounds(DeviceRounds):
    """As DeviceRounds, which reserves the pages of all requests."""

    def __init__(
        self,
        target: DeviceTarget,
        cache: PagedCache,
        drafter: DeviceDrafter | None,
        scheduler: Scheduler,
        config: EngineConfig,
        parking: Parking | None = None,
        sps_watch: SpsWatch | None = None,
    ) -> None:
        """Parking is of the device's rounds; the others have costs of their own."""
        super().__init__(target, cache, drafter, scheduler, config, parking, sps_watch)
        self._of_host = _HostRounds(target, cache, drafter, scheduler, config)
        self._is_hosts_turn = False

    def advance(self, batch: Sequence[ActiveRequest]) -> list[Outcome]:
        hosts = [active for active in batch if active.request.needs_host]
        devices = [active for active in batch if not active.request.needs_host]
        self._is_hosts_turn = bool(hosts) and not (devices and self._is_hosts_turn)
        return self._of_host.advance(hosts) if self._is_hosts_turn else super().advance(devices)


class _HostRounds(HostRounds):
    """With captured passes of the target, in pages that are reserved already."""

    def __init__(
        self,
        target: DeviceTarget,
        cache: PagedCache,
        drafter: DeviceDrafter | None,
        scheduler: Scheduler,
        config: EngineConfig,
    ) -> None:
        super().__init__(target, drafter, scheduler, config)
        self._passes = CapturedPasses(target, cache, 1 + (drafter.block_size if drafter else 0))

    def _run(self, slots: Sequence[KVSlot], blocks: Sequence[torch.Tensor]) -> Pass:
        return self._passes(slots, blocks)
