"""Who leads the rounds: the device wherever its pair can, otherwise the host."""

from dspark.config import EngineConfig
from dspark.drafters.base import Drafter
from dspark.drafters.paged import PagedDSparkDrafter
from dspark.engine.rounds.device import DeviceRounds
from dspark.engine.rounds.host import HostRounds, RoundRunner
from dspark.engine.schedule.policies import Scheduler
from dspark.kvcache.caches import PagedCache
from dspark.targets.base import Target
from dspark.targets.dense import DenseTarget


def choose_rounds(
    target: Target, drafter: Drafter | None, scheduler: Scheduler, config: EngineConfig
) -> RoundRunner:
    if (
        isinstance(target, DenseTarget)
        and isinstance(target.cache, PagedCache)
        and (drafter is None or isinstance(drafter, PagedDSparkDrafter))
    ):
        return DeviceRounds(target, drafter, scheduler, config)
    return HostRounds(target, drafter, scheduler, config)
