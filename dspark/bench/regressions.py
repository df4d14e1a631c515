"""A report against an older one: which figures became worse by more than noise.

A rate has regressed if three things hold: it fell by more than SMALLEST; the 99 % bootstrap
interval of new over old, paired by prompt, is below 1; and every trial of the new run is slower
than every trial of the old one, which covers what drifts within a run. With three trials each the
last alone happens by chance once in twenty. Speed-ups are ratios within a run, so that a machine
that is slower today does not count; plain decoding is judged by its own rate.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from dspark.bench.bootstrap import change_interval, geometric_change
from dspark.errors import InputError

SMALLEST = 0.02
LEAST_TRIALS = 2
Verdict = Literal["worse", "better", "same", "not judged"]


@dataclass(frozen=True, slots=True)
class Change:
    """`change` is new over old, `interval` its 99 % bootstrap interval."""

    condition: str
    arm: str
    figure: Literal["rate", "speed-up", "accepted length", "identity"]
    old: float
    new: float
    change: float
    interval: tuple[float, float] | None
    verdict: Verdict


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Of every condition and arm that both documents have. Raises InputError if there is none, or
    the documents are of other settings."""
    _check(old, new)
    before = {each["condition"]["name"]: each for each in old["sections"]}
    found = [
        change
        for section in new["sections"]
        if (name := section["condition"]["name"]) in before
        for change in _section_changes(name, before[name], section)
    ]
    if not found:
        raise InputError(
            "the two reports have no condition and drafter in common",
            "Measure with the options of the old one; its JSON states the command.",
        )
    return found


def regressed(found: Sequence[Change]) -> list[Change]:
    return [each for each in found if each.verdict == "worse"]


def _check(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if old.get("version") != new["version"] or "sections" not in old:
        raise InputError(
            "the old report is of another version, or no report of dspark bench",
            "Measure it again with this version: dspark bench --output OLD.json.",
        )
    for name in ("max_tokens", "device", "dtype"):
        if old["settings"][name] != new["settings"][name]:
            raise InputError(
                f"the reports differ in {name}: {old['settings'][name]} and "
                f"{new['settings'][name]}",
                "Measure with the options of the old one; its JSON states the command.",
            )
    if old["prompt_set"]["sha256"] != new["prompt_set"]["sha256"]:
        raise InputError(
            "the reports are of different prompts", "Give the same --suite, --prompts and --limit."
        )


def _section_changes(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    if old["prompts"] != new["prompts"] or old["timed"] != new["timed"]:
        raise InputError(
            "one of the reports is partial, or only one was timed", "Measure both to the end."
        )
    plain = (old["plain"]["answers"]["rates"], new["plain"]["answers"]["rates"])
    if new["timed"]:
        yield _rate_change(name, "plain", "rate", *plain)
    drafters = {each["name"]: each for each in old["drafters"]}
    for after in new["drafters"]:
        before = drafters.get(after["name"])
        if before is None:
            continue
        if new["timed"]:
            ratios = (
                _ratios(before["answers"]["rates"], plain[0]),
                _ratios(after["answers"]["rates"], plain[1]),
            )
            yield _rate_change(name, after["name"], "speed-up", *ratios)
        yield _tau_change(name, before, after)
        yield _identity_change(name, before, after)


def _ratios(
    rates: Sequence[Sequence[float]], plain: Sequence[Sequence[float]]
) -> list[list[float]]:
    return [
        [a / b if b else 0.0 for a, b in zip(one, two, strict=True)]
        for one, two in zip(rates, plain, strict=True)
    ]


def _rate_change(
    condition: str,
    arm: str,
    figure: Literal["rate", "speed-up"],
    old: Sequence[Sequence[float]],
    new: Sequence[Sequence[float]],
) -> Change:
    pairs = [(one, two) for one, two in zip(old, new, strict=True) if min(*one, *two, 1.0) > 0.0]
    if not pairs:
        return Change(condition, arm, figure, 0.0, 0.0, 1.0, None, "not judged")
    before, after = [one for one, _ in pairs], [two for _, two in pairs]
    change, interval = geometric_change(before, after), change_interval(before, after)
    means = (_by_trial(before), _by_trial(after))
    verdict = _verdict(change, interval, *means)
    return Change(
        condition, arm, figure, fmean(means[0]), fmean(means[1]), change, interval, verdict
    )


def _by_trial(rates: Sequence[Sequence[float]]) -> list[float]:
    """Geometric mean over prompts, trial by trial."""
    trials = min(map(len, rates))
    return [math.exp(fmean(math.log(each[trial]) for each in rates)) for trial in range(trials)]


def _verdict(
    change: float, interval: tuple[float, float], old: Sequence[float], new: Sequence[float]
) -> Verdict:
    if min(len(old), len(new)) < LEAST_TRIALS:
        return "not judged"
    low, high = interval
    if change < 1 - SMALLEST and high < 1 and max(new) < min(old):
        return "worse"
    if change > 1 + SMALLEST and low > 1 and min(new) > max(old):
        return "better"
    return "same"


def _tau_change(condition: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
    """Accepted lengths of the prompts: those of a clock do not enter, so that trials do not."""
    taus = [_taus(each) for each in (old, new)]
    shared = [[[a], [b]] for a, b in zip(*taus, strict=True) if a and b]
    before, after = [one for one, _ in shared], [two for _, two in shared]
    if not shared:
        return Change(
            condition, new["name"], "accepted length", old["tau"], new["tau"], 1.0, None, "same"
        )
    change, interval = geometric_change(before, after), change_interval(before, after)
    low, high = interval
    verdict: Verdict = "same"
    if change < 1 - SMALLEST and high < 1:
        verdict = "worse"
    elif change > 1 + SMALLEST and low > 1:
        verdict = "better"
    return Change(
        condition, new["name"], "accepted length", old["tau"], new["tau"], change, interval, verdict
    )


def _taus(drafter: Mapping[str, Any]) -> list[float]:
    pairs = drafter["answers"]["tokens_rounds"]
    return [tokens / rounds if rounds else 0.0 for tokens, rounds in pairs]


def _identity_change(condition: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
    was, now = old["identical"], new["identical"]
    verdict: Verdict = "same"
    if was is None or now is None:
        verdict = "not judged"
    elif was != now:
        verdict = "better" if now else "worse"
    return Change(
        condition, new["name"], "identity", float(bool(was)), float(bool(now)), 1.0, None, verdict
    )
