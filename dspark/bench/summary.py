"""From the runs of both arms to the report: rates, acceptance, verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from dspark.bench.config import ARMS, PLAIN, BenchConfig
from dspark.bench.prompts import BenchPrompt
from dspark.bench.report import (
    ArmFigures,
    BenchReport,
    CategoryFigures,
    Difference,
    Figure,
    PositionAcceptance,
)
from dspark.events import DecodeStats, Finished, Round

if TYPE_CHECKING:
    import torch

NextLogits = Callable[[Sequence[int]], "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Run:
    """One answer of one arm to the prompt of that index."""

    arm: str
    trial: int
    prompt: int
    rounds: tuple[Round, ...]
    finished: Finished


def summarise(
    runs: Sequence[Run],
    prompts: Sequence[BenchPrompt],
    config: BenchConfig,
    next_logits: NextLogits,
    arm: str = ARMS[1],
) -> BenchReport:
    """Summary of plain decoding and one arm with drafts; runs of other arms are skipped.

    An interrupted bench has fewer runs than `prompts` and `config` ask for.
    """
    runs = [run for run in runs if run.arm in (PLAIN, arm)]
    is_partial = len(runs) < 2 * len(prompts) * config.trials
    prompts = prompts[: 1 + max(run.prompt for run in runs)]
    dspark = [run for run in runs if run.arm == arm]
    is_compared = config.sampling.acceptance != "rejection"
    differing = _differing_runs(runs) if is_compared else []
    return BenchReport(
        prompts=len(prompts),
        is_partial=is_partial,
        plain=_arm_figures(runs, PLAIN),
        dspark=_arm_figures(runs, arm),
        tau=_tau(dspark),
        verified_per_round=_verified_per_round(dspark),
        acceptance_by_position=acceptance_by_position(
            [each for run in dspark for each in run.rounds]
        ),
        categories=_categories(runs, prompts, arm),
        is_identical=not differing if is_compared else None,
        differing_prompts=len({plain.prompt for plain, _ in differing}),
        parked=_parked(dspark),
        difference=_first_difference(*differing[0], prompts, next_logits) if differing else None,
    )


def _arm_figures(runs: Sequence[Run], arm: str) -> ArmFigures:
    trials = sorted({run.trial for run in runs})
    by_trial = [
        [run.finished.stats for run in runs if run.arm == arm and run.trial == trial]
        for trial in trials
    ]
    return ArmFigures(
        decode=Figure(tuple(decode_rate(stats) for stats in by_trial)),
        end_to_end=Figure(tuple(end_to_end_rate(stats) for stats in by_trial)),
    )


def decode_rate(stats: Sequence[DecodeStats]) -> float:
    """Tokens per second, excluding the tokens that come out of prefill."""
    seconds = sum(each.decode_seconds for each in stats)
    return sum(max(each.new_tokens - 1, 0) for each in stats) / seconds if seconds else 0.0


def end_to_end_rate(stats: Sequence[DecodeStats]) -> float:
    seconds = sum(each.prefill_seconds + each.decode_seconds for each in stats)
    return sum(each.new_tokens for each in stats) / seconds if seconds else 0.0


def _parked(runs: Sequence[Run]) -> float:
    rounds = sum(run.finished.stats.rounds for run in runs)
    return sum(run.finished.stats.parked for run in runs) / rounds if rounds else 0.0


def _drafted_rounds(runs: Sequence[Run]) -> int:
    return sum(run.finished.stats.rounds - run.finished.stats.parked for run in runs)


def _tau(runs: Sequence[Run]) -> float:
    rounds = _drafted_rounds(runs)
    if not rounds:
        return float(any(run.finished.stats.rounds for run in runs))
    return 1 + sum(run.finished.stats.accepted for run in runs) / rounds


def _verified_per_round(runs: Sequence[Run]) -> float:
    rounds = _drafted_rounds(runs)
    return sum(run.finished.stats.verified for run in runs) / rounds if rounds else 0.0


def acceptance_by_position(rounds: Sequence[Round]) -> tuple[PositionAcceptance, ...]:
    block = max((len(each.draft) for each in rounds), default=0)
    return tuple(
        PositionAcceptance(
            position=position,
            verified=sum(each.verified >= position for each in rounds),
            reached=sum(
                each.verified >= position and each.accepted >= position - 1 for each in rounds
            ),
            accepted=sum(each.accepted >= position for each in rounds),
        )
        for position in range(1, block + 1)
    )


def _categories(
    runs: Sequence[Run], prompts: Sequence[BenchPrompt], arm: str
) -> tuple[CategoryFigures, ...]:
    names = dict.fromkeys(prompt.category for prompt in prompts)
    return tuple(_category(runs, prompts, name, arm) for name in names)


def _category(
    runs: Sequence[Run], prompts: Sequence[BenchPrompt], name: str, arm: str
) -> CategoryFigures:
    category_runs = [run for run in runs if prompts[run.prompt].category == name]
    speedup = _arm_figures(category_runs, arm).decode.paired_ratio(
        _arm_figures(category_runs, PLAIN).decode
    )
    return CategoryFigures(
        category=name,
        prompts=sum(prompt.category == name for prompt in prompts),
        speedup=speedup.median,
        tau=_tau([run for run in category_runs if run.arm == arm]),
    )


def _differing_runs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Every run that differs from plain decoding's first answer to its prompt, with that answer."""
    first: dict[int, Run] = {}
    for run in runs:
        if run.arm == PLAIN:
            first.setdefault(run.prompt, run)
    return [
        (first[run.prompt], run)
        for run in runs
        if run.finished.token_ids != first[run.prompt].finished.token_ids
    ]


def _first_difference(
    plain: Run, other: Run, prompts: Sequence[BenchPrompt], next_logits: NextLogits
) -> Difference:
    plain_ids, other_ids = plain.finished.token_ids, other.finished.token_ids
    position, plain_token, other_token = next(
        (place, a, b) for place, (a, b) in enumerate(zip_longest(plain_ids, other_ids)) if a != b
    )
    gap = None
    if plain_token is not None and other_token is not None:
        logits = next_logits([*prompts[plain.prompt].token_ids, *plain_ids[:position]])
        gap = float(logits[plain_token] - logits[other_token])
    return Difference(plain.prompt, position, plain_token, other_token, gap)
