"""One section of a report for each condition: every arm on every prompt, in turns."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from dspark.bench.bootstrap import speedup_interval
from dspark.bench.comparison import Comparison, arms_of, comparison_of
from dspark.bench.conditions import Condition
from dspark.bench.config import PLAIN, BenchConfig
from dspark.bench.encode import encode_prompts
from dspark.bench.noise import Noise, noise_of, rates_by_prompt
from dspark.bench.prompts import BenchPrompt, PromptText
from dspark.bench.round_time import RoundTime, accepted_lengths, round_time
from dspark.bench.runner import BenchProgress, batched_runs, check_work, timed_runs
from dspark.bench.summary import Run
from dspark.events import Round

if TYPE_CHECKING:
    from dspark.bench.heads import OpenHeads
    from dspark.bench.reliability import Reliability


@dataclass(frozen=True, slots=True)
class ArmDetails:
    """`rates` [prompts][trials] are tokens per second of decoding, `tokens_rounds` sums over an
    answer's rounds with drafts (1 + accepted, rounds) by prompt. `interval` is of the speed-up over
    plain decoding; `lengths` are rounds by accepted drafts."""

    name: str
    rates: tuple[tuple[float, ...], ...]
    tokens_rounds: tuple[tuple[int, int], ...]
    round_time: RoundTime | None
    lengths: tuple[int, ...]
    interval: tuple[float, float] | None
    reliability: "tuple[Reliability, ...] | None"


@dataclass(frozen=True, slots=True)
class Section:
    condition: Condition
    prompt_tokens: float
    comparison: Comparison
    details: tuple[ArmDetails, ...]
    noise: Noise
    runs: tuple[Run, ...]
    prompts: tuple[BenchPrompt, ...]

    @property
    def plain(self) -> ArmDetails:
        return self.details[0]

    def of(self, name: str) -> ArmDetails:
        return next(each for each in self.details if each.name == name)


def run_sections(
    opened: "OpenHeads",
    texts: Sequence[PromptText],
    config: BenchConfig,
    conditions: Sequence[Condition],
    *,
    is_timed: bool,
) -> Generator[BenchProgress, None, tuple[Section, ...]]:
    """Ctrl+C keeps the complete sections, and of the one under way its complete trials."""
    sections: list[Section] = []
    for condition in conditions:
        work = replace(config, sampling=condition.sampling)
        prompts = encode_prompts(opened.plain, texts, condition)
        try:
            runs = yield from _runs(
                opened, prompts, work, (len(sections), len(conditions)), is_timed=is_timed
            )
        except KeyboardInterrupt:
            if not sections:
                raise
            break
        sections.append(section_of(opened, runs, prompts, work, condition, is_timed=is_timed))
        if sections[-1].comparison.is_partial:
            break
    return tuple(sections)


def _runs(
    opened: "OpenHeads",
    prompts: Sequence[BenchPrompt],
    config: BenchConfig,
    place: tuple[int, int],
    *,
    is_timed: bool,
) -> Generator[BenchProgress, None, list[Run]]:
    check_work(prompts, config)
    done, sections = place
    work = (timed_runs if is_timed else batched_runs)(arms_of(opened), prompts, config)
    try:
        while True:
            item = next(work)
            try:
                yield replace(item, done=item.done + done * item.total, total=item.total * sections)
            except KeyboardInterrupt as interrupt:
                work.throw(interrupt)
    except StopIteration as end:
        return list(end.value)


def section_of(
    opened: "OpenHeads",
    runs: Sequence[Run],
    prompts: Sequence[BenchPrompt],
    config: BenchConfig,
    condition: Condition,
    *,
    is_timed: bool,
) -> Section:
    answered = tuple(prompts[: 1 + max(run.prompt for run in runs)])
    names = [PLAIN, *(head.name for head in opened.heads)]
    plain_rates = rates_by_prompt(runs, PLAIN)
    return Section(
        condition=condition,
        prompt_tokens=sum(len(each.token_ids) for each in answered) / len(answered),
        comparison=comparison_of(opened, runs, prompts, config, is_timed=is_timed),
        details=tuple(_details(runs, name, plain_rates, is_timed=is_timed) for name in names),
        noise=noise_of(plain_rates) if is_timed else Noise(None),
        runs=tuple(runs),
        prompts=answered,
    )


def _details(
    runs: Sequence[Run], name: str, plain: Sequence[Sequence[float]], *, is_timed: bool
) -> ArmDetails:
    own = [run for run in runs if run.arm == name]
    rates = rates_by_prompt(runs, name)
    is_comparable = is_timed and name != PLAIN and all(map(min, (*plain, *rates)))
    return ArmDetails(
        name=name,
        rates=tuple(map(tuple, rates)) if is_timed else (),
        tokens_rounds=_tokens_rounds(own, len(rates)),
        round_time=round_time(own) if is_timed else None,
        lengths=accepted_lengths(own) if name != PLAIN else (),
        interval=speedup_interval(plain, rates) if is_comparable else None,
        reliability=_reliability(own),
    )


def _tokens_rounds(runs: Sequence[Run], prompts: int) -> tuple[tuple[int, int], ...]:
    sums = [[0, 0] for _ in range(prompts)]
    for run in runs:
        for each in run.rounds:
            if not each.is_parked:
                sums[run.prompt][0] += 1 + each.accepted
                sums[run.prompt][1] += 1
    return tuple((tokens, rounds) for tokens, rounds in sums)


def _reliability(runs: Sequence[Run]) -> "tuple[Reliability, ...] | None":
    """By position, of the rounds that verified a draft there: a schedule chooses by confidences
    alone, so that what is accepted at a confidence does not depend on its choice. None without a
    confidence head."""
    rounds = [each for run in runs for each in run.rounds if each.confidence]
    block = max((each.verified for each in rounds), default=0)
    if not block:
        return None
    return tuple(_reliability_at(k, rounds) for k in range(1, block + 1))


def _reliability_at(position: int, rounds: Sequence[Round]) -> "Reliability":
    import torch

    from dspark.bench.reliability import reliability_of

    told = [each for each in rounds if each.verified >= position]
    survival = [prod((each.confidence or ())[:position]) for each in told]
    survived = [each.accepted >= position for each in told]
    return reliability_of(torch.tensor(survival, dtype=torch.float64), torch.tensor(survived))
