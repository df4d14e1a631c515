"""An engine with its schedule, and the tables of pass times that schedules go by."""

import hashlib
import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from dspark import __version__
from dspark.config import EngineConfig
from dspark.drafters.base import Drafter
from dspark.engine.current_device import on_device
from dspark.engine.loop import Engine
from dspark.engine.runtime import ResolvedRuntime
from dspark.engine.schedule.expected_gain import expected_gain
from dspark.engine.schedule.expert_prices import ExpertPrices
from dspark.engine.schedule.parking import Parking
from dspark.engine.schedule.policies import (
    AsyncSpsSchedule,
    FullSchedule,
    SpsSchedule,
    ThresholdSchedule,
)
from dspark.engine.schedule.sps_measure import measure_sps
from dspark.engine.schedule.sps_profile import SpsTable
from dspark.engine.schedule.sps_watch import SpsWatch
from dspark.hub import home
from dspark.targets.base import Target
from dspark.targets.expert_use import RoutesExperts
from dspark.text.stream import TextCodec
from dspark_kernels.cpu.processor import VARIABLE, variants

PARKING = ".parking"  # beside a table: what was learned of parking


def scheduled_engine(
    name: str,
    target: Target,
    drafter: Drafter | None,
    codec: TextCodec | None,
    config: EngineConfig,
    runtime: ResolvedRuntime,
) -> Engine:
    """With the schedule that `config` names; a missing table of pass times is measured."""
    schedule = config.schedule
    if schedule.mode == "threshold":
        return Engine(target, drafter, ThresholdSchedule(schedule.threshold), codec, config)
    if schedule.mode == "full" or drafter is None:
        return Engine(target, drafter, FullSchedule(schedule.most_drafts), codec, config)
    path = sps_path(name, target, drafter, runtime)
    routes, is_free = isinstance(target, RoutesExperts), not drafter.num_weights
    if is_free and not routes:  # drafts that cost nothing come without confidences to weigh
        parking = Parking(path.with_suffix(PARKING), block_size=drafter.block_size)
        return Engine(target, drafter, FullSchedule(), codec, config, parking=parking)
    table = SpsTable.load(path)
    if table is None or table.is_noisy or table.has_drifted or routes > bool(table.expert_reads):
        with on_device(target.device):
            table = measure_sps(target, drafter, name)
        table.save(path)
    kind = AsyncSpsSchedule if schedule.mode == "async" and not is_free else SpsSchedule
    scheduler = kind(table, _prices(table, target, drafter))
    watch = SpsWatch(scheduler, path)
    parking = Parking(
        path.with_suffix(PARKING),
        _plain_seconds(table),
        lambda count, survival: expected_gain(scheduler.curve(count), survival),
        drafter.block_size,
    )
    if is_free:  # but its rows have experts: weighed by how often such drafts were accepted
        scheduler.acceptance = parking.acceptance
    return Engine(target, drafter, scheduler, codec, config, watch, parking)


def _prices(table: SpsTable, target: Target, drafter: Drafter) -> ExpertPrices | None:
    """None for a target without routed experts."""
    if not isinstance(target, RoutesExperts) or not table.expert_reads:
        return None
    return ExpertPrices(target.expert_shape, drafter.block_size, table.expert_seconds)


def _plain_seconds(table: SpsTable) -> Callable[[int], float]:
    """Of a plain round by its number of requests, as the table said at first: what rounds say
    later must not change the measure of earlier ones."""
    return cache(lambda num_requests: table.curve(num_requests).verify(num_requests))


def sps_folder() -> Path:
    """The folder of this machine's tables."""
    return home() / "sps"


def _instructions() -> str:
    """Those that kernels on the CPU are built of, if any are."""
    return os.environ.get(VARIABLE) or next(iter(variants()), "")


def sps_path(name: str, target: Target, drafter: Drafter, runtime: ResolvedRuntime) -> Path:
    """One table per pair, the kernels and number formats of target and drafter, machine, versions
    and number of threads."""
    device = torch.device(runtime.device)
    machine = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.processor()} {os.cpu_count()} {torch.get_num_threads()}"
    )
    sizes = (drafter.block_size, drafter.num_weights)
    runners = (type(target).__name__, type(drafter).__name__, _instructions())
    formats = (runtime.dtype, runtime.draft_weights, runtime.kv)
    versions = (torch.__version__, __version__)
    facts = (name, target.spec, sizes, runners, formats, machine, versions)
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return sps_folder() / f"{digest}.json"
