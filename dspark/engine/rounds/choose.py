"""Chooses who drives the rounds: the device if the pair supports it, otherwise the host."""

from dspark.config import EngineConfig
from dspark.drafters.base import DeviceDrafter, Drafter
from dspark.engine.rounds.by_turns import DeviceAndHostRounds
from dspark.engine.rounds.captured_host import CapturedHostRounds
from dspark.engine.rounds.host import HostRounds
from dspark.engine.rounds.round_runner import RoundRunner
from dspark.engine.schedule.parking import Parking
from dspark.engine.schedule.policies import Scheduler
from dspark.engine.schedule.sps_watch import SpsWatch
from dspark.targets.base import DeviceTarget, Target


def choose_rounds(
    target: Target,
    drafter: Drafter | None,
    scheduler: Scheduler,
    config: EngineConfig,
    parking: Parking | None = None,
    sps_watch: SpsWatch | None = None,
) -> RoundRunner:
    """Over pages the host's passes are captured too; other targets, such as transformers', are as
    slow without drafts as with them."""
    cache = target.paged_cache() if isinstance(target, DeviceTarget) else None
    if not isinstance(target, DeviceTarget) or cache is None:
        return HostRounds(target, drafter, scheduler, config, parking, sps_watch)
    if drafter is None or isinstance(drafter, DeviceDrafter):
        return DeviceAndHostRounds(target, cache, drafter, scheduler, config, parking, sps_watch)
    return CapturedHostRounds(target, cache, drafter, scheduler, config, parking, sps_watch)
