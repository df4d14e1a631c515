"""Many requests at a time: plain decoding against fixed blocks, a threshold and both schedulers.

As many requests as asked for begin together and run equally long. Rates are those of the stretch
in which all of them decode: from the first token of the last one to the end of the first one. Every
arm runs beside a plain run, so that ratios are of the same seconds, and the schedulers have run
once before at every number of requests, as a user's have.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, median, quantiles
from typing import TYPE_CHECKING

from dspark.bench.config import PLAIN, SCHEDULERS, BenchConfig
from dspark.bench.prompts import BenchPrompt
from dspark.bench.report import Figure
from dspark.bench.runner import BenchProgress
from dspark.config import ScheduleConfig, StopConfig
from dspark.engine.request import Request
from dspark.errors import InputError
from dspark.events import EngineEvent, Failed, Finished, PrefillProgress, Round

if TYPE_CHECKING:
    from dspark.engine.loop import Engine
    from dspark.engine.session import Session

THRESHOLD = 0.5  # of the static threshold


@dataclass(frozen=True, slots=True)
class LoadRun:
    """One arm with some requests at once. Rates are tokens per second, `plain_rate` the total of
    the plain run beside it; `gaps` are the seconds from one arrival of tokens to the next, of all
    requests."""

    arm: str
    requests: int
    trial: int
    total_rate: float
    request_rates: tuple[float, ...]
    first_token_seconds: tuple[float, ...]
    gaps: tuple[float, ...]
    rounds: int
    verified: int
    accepted: int
    parked: int
    answers: tuple[tuple[int, ...], ...]
    plain_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """One arm at one number of requests, over all trials. `over_plain` is of the plain runs beside;
    `verified` is per request and round, `parked` a share of the rounds."""

    arm: str
    requests: int
    total: Figure
    over_plain: Figure
    per_request: float
    first_token_seconds: float
    gap_p50: float
    gap_p99: float
    tau: float
    verified: float
    parked: float
    is_identical: bool | None


@dataclass(frozen=True, slots=True)
class LoadReport:
    figures: tuple[LoadFigures, ...]
    trials: int

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(each.requests for each in self.figures))

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.arm for each in self.figures))

    def of(self, arm: str, requests: int) -> LoadFigures:
        return next(f for f in self.figures if (f.arm, f.requests) == (arm, requests))

    def best_static(self, requests: int) -> float:
        """Of plain decoding and every fixed length the best, in times of plain decoding."""
        fixed = [arm for arm in self.arms if arm.startswith("fixed")]
        return max([1.0, *(self.of(arm, requests).over_plain.median for arm in fixed)])


def schedules(block_size: int, has_confidence: bool) -> dict[str, ScheduleConfig]:
    """The arms besides plain decoding."""
    fixed = {f"fixed {n}": ScheduleConfig("full", most_drafts=n) for n in range(1, block_size + 1)}
    if not has_confidence:
        return {**fixed, SCHEDULERS[0]: ScheduleConfig("auto")}
    threshold = {f"threshold {THRESHOLD:g}": ScheduleConfig("threshold", THRESHOLD)}
    adaptive = {SCHEDULERS[0]: ScheduleConfig("auto"), SCHEDULERS[1]: ScheduleConfig("async")}
    return {**fixed, **threshold, **adaptive}


def run_load(
    session: "Session",
    prompts: Sequence[BenchPrompt],
    counts: Sequence[int],
    config: BenchConfig,
    arms: Sequence[str] = (),
) -> Generator[BenchProgress, None, LoadReport]:
    """Every arm, or those named, at every number of requests, in turns. Ctrl+C keeps the complete
    trials."""
    drafter = session.engine.drafter
    if drafter is None:
        raise InputError(
            f"{session.name} has no head to measure", "Name one with --draft HEAD or lookup."
        )
    known = schedules(drafter.block_size, _has_confidence(session))
    wanted = [arm for arm in known if not arms or arm in arms]
    sessions = {arm: session.with_schedule(known[arm]) for arm in wanted}
    engines = {PLAIN: session.engine, **{arm: each.engine for arm, each in sessions.items()}}
    total = (len(wanted) + (len(wanted) + 1) // 2) * len(counts)
    runs: list[LoadRun] = []
    yield BenchProgress(0, total * config.trials, "warm-up", 0, None)
    for count in counts:
        for arm, engine in engines.items():  # schedulers learn whether drafts pay
            tokens = config.max_tokens if arm in SCHEDULERS else config.warmup_tokens
            one_load(arm, engine, prompts, count, 0, config, tokens)
    try:
        for trial in range(config.trials):
            for group, count in _order(trial, wanted, counts):
                own = []
                for arm in group:
                    parts = (arm, engines[arm], prompts, count, trial, config, config.max_tokens)
                    own.append(one_load(*parts))
                    done, label = len(runs) + len(own), f"{arm}, {count} at once"
                    yield BenchProgress(done, total * config.trials, label, trial, None)
                (plain,) = (run for run in own if run.arm == PLAIN)
                runs += [replace(run, plain_rate=plain.total_rate) for run in own]
    except KeyboardInterrupt:
        runs = runs[: len(runs) // total * total]
        if not runs:
            raise
    return summarise_load(runs, is_compared=config.sampling.acceptance != "rejection")


def _has_confidence(session: "Session") -> bool:
    engine = session.engine
    config = getattr(engine.drafter, "config", None)
    return bool(getattr(config, "has_confidence", False))


def _order(
    trial: int, arms: Sequence[str], counts: Sequence[int]
) -> Iterator[tuple[Sequence[str], int]]:
    """Two arms at a time, with a plain run between them. They take turns in going first."""
    for place, count in enumerate(counts):
        first = (trial + place) % len(arms)
        turned = (*arms[first:], *arms[:first])
        for index in range(0, len(turned), 2):
            before, *after = turned[index : index + 2]
            yield (before, PLAIN, *after), count


def one_load(
    arm: str,
    engine: "Engine",
    prompts: Sequence[BenchPrompt],
    count: int,
    trial: int,
    config: BenchConfig,
    max_tokens: int,
) -> LoadRun:
    engine.forget_texts()
    stop = StopConfig(max_tokens=max_tokens, ignore_stop_tokens=True)
    chosen = [prompts[index % len(prompts)] for index in range(count)]
    ids = [
        engine.submit(Request(each.token_ids, config.sampling, stop, plain=arm == PLAIN))
        for each in chosen
    ]
    events: list[tuple[float, EngineEvent]] = []
    while engine.num_requests:
        told = engine.step()
        now = time.perf_counter()
        events += [(now, event) for event in told]
    for _, event in events:
        if isinstance(event, Failed):
            raise event.error
    return _load_run(arm, count, trial, ids, events)


def _load_run(
    arm: str,
    count: int,
    trial: int,
    ids: Sequence[int],
    events: Sequence[tuple[float, EngineEvent]],
) -> LoadRun:
    begun = [now for now, e in events if isinstance(e, PrefillProgress) and e.pieces]
    finished = {e.request_id: (now, e) for now, e in events if isinstance(e, Finished)}
    start, end = max(begun), min(now for now, _ in finished.values())
    rounds = [(now, e) for now, e in events if isinstance(e, Round)]
    shared = [(now, e) for now, e in rounds if start < now <= end]
    tokens = sum(len(e.pieces) for _, e in shared)
    arrivals = {each: [now for now, e in rounds if e.request_id == each] for each in ids}
    stats = [finished[each][1].stats for each in ids]
    return LoadRun(
        arm=arm,
        requests=count,
        trial=trial,
        total_rate=tokens / (end - start) if end > start else 0.0,
        request_rates=tuple(each.decode_tokens_per_second for each in stats),
        first_token_seconds=tuple(each.prefill_seconds for each in stats),
        gaps=tuple(b - a for times in arrivals.values() for a, b in pairwise(times)),
        rounds=len(shared),
        verified=sum(e.verified for _, e in shared),
        accepted=sum(e.accepted for _, e in shared),
        parked=sum(e.is_parked for _, e in shared),
        answers=tuple(finished[each][1].token_ids for each in ids),
    )


def summarise_load(runs: Sequence[LoadRun], *, is_compared: bool) -> LoadReport:
    known = dict.fromkeys((run.arm, run.requests) for run in runs)
    keys = sorted(known, key=lambda key: key[0] != PLAIN)
    trials = 1 + max(run.trial for run in runs)
    return LoadReport(tuple(_figures(runs, *key, is_compared) for key in keys), trials)


def _figures(runs: Sequence[LoadRun], arm: str, requests: int, is_compared: bool) -> LoadFigures:
    own = _by_trial(runs, arm, requests)
    plain = _by_trial(runs, PLAIN, requests)[0].answers
    total = Figure(tuple(run.total_rate for run in own))
    rounds = sum(run.rounds for run in own)
    parked = sum(run.parked for run in own)
    drafted = max(rounds - parked, 1)
    gaps = [gap for run in own for gap in run.gaps]
    cuts = quantiles(gaps, n=100, method="inclusive") if len(gaps) > 1 else [0.0] * 99
    return LoadFigures(
        arm=arm,
        requests=requests,
        total=total,
        over_plain=total.paired_ratio(Figure(tuple(run.plain_rate for run in own))),
        per_request=fmean(rate for run in own for rate in run.request_rates),
        first_token_seconds=median(s for run in own for s in run.first_token_seconds),
        gap_p50=cuts[49],
        gap_p99=cuts[98],
        tau=1 + sum(run.accepted for run in own) / drafted,
        verified=sum(run.verified for run in own) / rounds if rounds else 0.0,
        parked=parked / rounds if rounds else 0.0,
        is_identical=all(run.answers == plain for run in own) if is_compared else None,
    )


def _by_trial(runs: Sequence[LoadRun], arm: str, requests: int) -> list[LoadRun]:
    chosen = [run for run in runs if (run.arm, run.requests) == (arm, requests)]
    return sorted(chosen, key=lambda run: run.trial)
