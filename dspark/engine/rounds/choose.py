"""Chooses who drives the rounds: the device if the pair supports it, otherwise the host."""

from dspark.config import EngineConfig
from dspark.drafters.base import DeviceDrafter, Drafter
from dspark.engine.rounds.device import DeviceRounds
from dspark.engine.rounds.host import HostRounds, RoundRunner
from dspark.engine.schedule.policies import Scheduler
from dspark.targets.base import DeviceTarget, Target


def choose_rounds(
    target: Target, drafter: Drafter | None, scheduler: Scheduler, config: EngineConfig
) -> RoundRunner:
    if (
        isinstance(target, DeviceTarget)
        and (cache := target.paged_cache()) is not None
        and (drafter is None or isinstance(drafter, DeviceDrafter))
    ):
        return DeviceRounds(target, cache, drafter, scheduler, config)
    return HostRounds(target, drafter, scheduler, config)
