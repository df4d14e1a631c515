"""Plain decoding and DSpark on the same prompts, interleaved: sums of the engine's events."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dspark.bench.config import BenchConfig
from dspark.bench.prompts import BenchPrompt
from dspark.bench.report import ARMS, BenchReport
from dspark.bench.summary import Run, summarise
from dspark.config import StopConfig
from dspark.errors import InputError
from dspark.events import DecodeStats, Finished, Round

if TYPE_CHECKING:
    from dspark.engine.session import Session


@dataclass(frozen=True, slots=True)
class BenchProgress:
    """`done` of `total` answers are written; `latest` is the last one, by `arm` in `trial`."""

    done: int
    total: int
    arm: str
    trial: int
    latest: DecodeStats | None


def run_bench(
    session: "Session", prompts: Sequence[BenchPrompt], config: BenchConfig = BenchConfig()
) -> Iterator[BenchProgress | BenchReport]:
    """Yields progress; the last item is the report."""
    _check(session, prompts, config)
    yield BenchProgress(0, _total(prompts, config), "warm-up", 0, None)
    _warm_up(session, prompts[0], config)
    runs: list[Run] = []
    for trial, index, arm in _order(len(prompts), config.trials):
        run = _decode(session, prompts[index], config, arm, trial, index)
        runs.append(run)
        yield BenchProgress(len(runs), _total(prompts, config), arm, trial, run.finished.stats)
    yield summarise(runs, prompts, config, session.next_logits)


def _check(session: "Session", prompts: Sequence[BenchPrompt], config: BenchConfig) -> None:
    if not session.has_drafter:
        raise InputError(f"{session.name} has no head to measure", "Name one with --draft.")
    if config.trials < 1 or not prompts:
        raise InputError("nothing to measure", "Give at least one prompt and one trial.")


def _total(prompts: Sequence[BenchPrompt], config: BenchConfig) -> int:
    return len(ARMS) * len(prompts) * config.trials


def _order(prompts: int, trials: int) -> Iterator[tuple[int, int, str]]:
    """Trial, prompt, arm; the arms take turns in going first, so that neither gains by it."""
    for trial in range(trials):
        for index in range(prompts):
            is_swapped = (trial + index) % 2 == 1
            for arm in reversed(ARMS) if is_swapped else ARMS:
                yield trial, index, arm


def _warm_up(session: "Session", prompt: BenchPrompt, config: BenchConfig) -> None:
    stop = StopConfig(max_tokens=config.warmup_tokens)
    for arm in ARMS:
        for _ in session.generate(prompt.token_ids, config.sampling, stop, plain=arm == "plain"):
            pass


def _decode(
    session: "Session", prompt: BenchPrompt, config: BenchConfig, arm: str, trial: int, index: int
) -> Run:
    rounds: list[Round] = []
    for event in session.generate(
        prompt.token_ids, config.sampling, config.stop, plain=arm == "plain"
    ):
        if isinstance(event, Round):
            rounds.append(event)
        if isinstance(event, Finished):
            return Run(arm, trial, index, tuple(rounds), event)
    raise AssertionError("a decode ends with Finished")
