"""Plain decoding and DSpark on the same prompts, interleaved: sums of the engine's events."""

from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dspark.bench.config import ARMS, PLAIN, BenchConfig
from dspark.bench.prompts import BenchPrompt
from dspark.bench.report import BenchReport
from dspark.bench.summary import Run, summarise
from dspark.config import StopConfig
from dspark.engine.request import Request
from dspark.errors import InputError
from dspark.events import DecodeStats, Finished, Round

if TYPE_CHECKING:
    from dspark.engine.session import Session


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to decode, measured against others."""

    name: str
    session: "Session"
    is_plain: bool = False


@dataclass(frozen=True, slots=True)
class BenchProgress:
    """`done` of `total` answers are written; `latest` is the newest, by `arm` in `trial`."""

    done: int
    total: int
    arm: str
    trial: int
    latest: DecodeStats | None


Runs = Generator[BenchProgress, None, list[Run]]


def run_bench(
    session: "Session", prompts: Sequence[BenchPrompt], config: BenchConfig = BenchConfig()
) -> Generator[BenchProgress, None, BenchReport]:
    """Plain decoding and the pair's head, one answer at a time."""
    check_work(prompts, config)
    if not session.has_drafter:
        raise InputError(
            f"{session.name} has no head to measure",
            "Name one with --draft HEAD, or measure --draft lookup.",
        )
    arms = [Arm(name, session, is_plain=name == PLAIN) for name in ARMS]
    runs = yield from timed_runs(arms, prompts, config)
    return summarise(runs, prompts, config, session.next_logits)


def check_work(prompts: Sequence[BenchPrompt], config: BenchConfig) -> None:
    if config.trials < 1 or not prompts:
        raise InputError("nothing to measure", "Give at least one prompt and one trial.")


def timed_runs(arms: Sequence[Arm], prompts: Sequence[BenchPrompt], config: BenchConfig) -> Runs:
    """One answer at a time, the arms in turns. Ctrl+C ends it; complete answers are kept."""
    total = len(arms) * len(prompts) * config.trials
    runs: list[Run] = []
    try:
        yield BenchProgress(0, total, "warm-up", 0, None)
        for arm in arms:
            _decode(arm, prompts[0], config, StopConfig(max_tokens=config.warmup_tokens))
        for trial, index, arm in _order(len(prompts), config.trials, arms):
            rounds, finished = _decode(arm, prompts[index], config, config.stop)
            runs.append(Run(arm.name, trial, index, rounds, finished))
            yield BenchProgress(len(runs), total, arm.name, trial, finished.stats)
    except KeyboardInterrupt:
        runs = _comparable(runs, len(prompts), len(arms))
        if not runs:
            raise
    return runs


def _comparable(runs: list[Run], num_prompts: int, num_arms: int) -> list[Run]:
    """The complete trials; of the first one, the prompts that every arm answered."""
    trials = len(runs) // (num_prompts * num_arms)
    whole = trials * num_prompts if trials else len(runs) // num_arms
    return runs[: whole * num_arms]


def batched_runs(arms: Sequence[Arm], prompts: Sequence[BenchPrompt], config: BenchConfig) -> Runs:
    """One arm after the other, many answers at a time: tokens and rounds count, times do not."""
    total = len(arms) * len(prompts)
    runs: list[Run] = []
    for arm in arms:
        yield BenchProgress(len(runs), total, arm.name, 0, None)
        rounds: defaultdict[int, list[Round]] = defaultdict(list)
        finished: dict[int, Finished] = {}
        requests = [
            Request(each.token_ids, config.sampling, config.stop, arm.is_plain) for each in prompts
        ]
        for event in arm.session.engine.run(requests):
            if isinstance(event, Round):
                rounds[event.request_id].append(event)
            if isinstance(event, Finished):
                finished[event.request_id] = event
                done = len(runs) + len(finished)
                yield BenchProgress(done, total, arm.name, 0, event.stats)
        runs += [
            Run(arm.name, 0, index, tuple(rounds[request_id]), finished[request_id])
            for index, request_id in enumerate(sorted(finished))  # ids rise as prompts come
        ]
    return runs


def _order(prompts: int, trials: int, arms: Sequence[Arm]) -> Iterator[tuple[int, int, Arm]]:
    """Trial, prompt, arm; the arms take turns in going first, so that order favours none."""
    for trial in range(trials):
        for index in range(prompts):
            first = (trial + index) % len(arms)
            for arm in (*arms[first:], *arms[:first]):
                yield trial, index, arm


def _decode(
    arm: Arm, prompt: BenchPrompt, config: BenchConfig, stop: StopConfig
) -> tuple[tuple[Round, ...], Finished]:
    rounds: list[Round] = []
    arm.session.forget_texts()
    for event in arm.session.generate(prompt.token_ids, config.sampling, stop, plain=arm.is_plain):
        if isinstance(event, Round):
            rounds.append(event)
        if isinstance(event, Finished):
            return tuple(rounds), event
    raise AssertionError("a decode ends with Finished")
