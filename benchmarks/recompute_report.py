"""The figures of a bench report computed again from its raw rounds, without any code of dspark.

python benchmarks/recompute_report.py figures.json

Reads figures.rounds.jsonl beside it, and fails at the first figure that is not the same to the last
digit.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

Runs = list[dict[str, Any]]


def main() -> None:
    path = Path(sys.argv[1])
    document = json.loads(path.read_text("utf-8"))
    lines = path.with_name(document["rounds"]).read_text("utf-8").splitlines()
    runs = [json.loads(line) for line in lines]
    count, different = 0, []
    for place, stated, computed in differences(document, runs):
        count += 1
        if stated != computed:
            different.append(f"{place}: {stated} is stated, {computed} computed")
    print("\n".join(different) or f"all {count} figures are those of the raw rounds")
    sys.exit(bool(different))


def differences(document: dict[str, Any], runs: Runs) -> Iterator[tuple[str, Any, Any]]:
    """Place, the stated figure and the computed one, of every figure."""
    for index, section in enumerate(document["sections"]):
        own = [run for run in runs if run["section"] == index]
        name = section["condition"]["name"]
        for key, value in plain_figures(own, section["timed"]).items():
            yield f"{name}, plain, {key}", dig(section["plain"], key), value
        yield f"{name}, prompt tokens", section["prompt_tokens"], prompt_tokens(own)
        if section["timed"]:
            yield f"{name}, noise", section["noise"], noise(own)
        for drafter in section["drafters"]:
            figures = drafter_figures(own, drafter["name"], section)
            for key, value in figures.items():
                yield f"{name}, {drafter['name']}, {key}", dig(drafter, key), value


def dig(found: Any, key: str) -> Any:
    for part in key.split("."):
        found = found[part]
    return found


def plain_figures(runs: Runs, is_timed: bool) -> dict[str, Any]:
    own = of_arm(runs, "plain")
    if not is_timed:
        return {}
    return {
        "decode.trials": by_trial(own, decode_rate),
        "end_to_end.trials": by_trial(own, end_to_end_rate),
        "round": round_time(own),
        "answers.rates": answer_rates(own),
    }


def drafter_figures(runs: Runs, arm: str, section: dict[str, Any]) -> dict[str, Any]:
    own = of_arm(runs, arm)
    figures: dict[str, Any] = {
        "tau": tau(own),
        "verified_per_round": verified_per_round(own),
        "parked": share(own, "parked"),
        "acceptance_by_position": positions(own),
        "accepted_lengths": lengths(own),
        "answers.tokens_rounds": tokens_rounds(own),
        "categories": categories(runs, arm, section),
    }
    if section["acceptance"] != "rejection":
        first: dict[int, list[int]] = {}
        for run in of_arm(runs, "plain"):
            first.setdefault(run["prompt"], run["token_ids"])
        differing = {
            run["prompt"]
            for run in runs
            if run["arm"] in ("plain", arm) and run["token_ids"] != first[run["prompt"]]
        }
        figures["identical"] = not differing
        figures["differing_prompts"] = len(differing)
    if section["timed"]:
        plain = by_trial(of_arm(runs, "plain"), decode_rate)
        rates = by_trial(own, decode_rate)
        figures["decode.trials"] = rates
        figures["end_to_end.trials"] = by_trial(own, end_to_end_rate)
        figures["speedup_trials"] = ratios(rates, plain)
        figures["speedup"] = median(ratios(rates, plain))
        figures["round"] = round_time(own)
        figures["answers.rates"] = answer_rates(own)
    return figures


def of_arm(runs: Runs, arm: str) -> Runs:
    return [run for run in runs if run["arm"] == arm]


def by_trial(runs: Runs, rate: Any) -> list[float]:
    trials = sorted({run["trial"] for run in runs})
    return [rate([run for run in runs if run["trial"] == trial]) for trial in trials]


def decode_rate(runs: Runs) -> float:
    """The token that comes out of the prompt's pass is not decoded."""
    seconds = sum(run["decode_seconds"] for run in runs)
    return sum(max(len(run["token_ids"]) - 1, 0) for run in runs) / seconds if seconds else 0.0


def end_to_end_rate(runs: Runs) -> float:
    seconds = sum(run["prefill_seconds"] + run["decode_seconds"] for run in runs)
    return sum(len(run["token_ids"]) for run in runs) / seconds if seconds else 0.0


def ratios(rates: list[float], plain: list[float]) -> list[float]:
    return [a / b if b else 0.0 for a, b in zip(rates, plain, strict=True)]


def rounds_of(runs: Runs) -> list[dict[str, Any]]:
    return [each for run in runs for each in run["rounds"]]


def drafted(runs: Runs) -> list[dict[str, Any]]:
    return [each for each in rounds_of(runs) if not each["parked"]]


def tau(runs: Runs) -> float:
    rounds = drafted(runs)
    if not rounds:
        return float(bool(rounds_of(runs)))
    return 1 + sum(each["accepted"] for each in rounds) / len(rounds)


def verified_per_round(runs: Runs) -> float:
    rounds = drafted(runs)
    return sum(each["verified"] for each in rounds) / len(rounds) if rounds else 0.0


def share(runs: Runs, key: str) -> float:
    rounds = rounds_of(runs)
    return sum(each[key] for each in rounds) / len(rounds) if rounds else 0.0


def positions(runs: Runs) -> list[dict[str, Any]]:
    rounds = rounds_of(runs)
    block = max((each["drafted"] for each in rounds), default=0)
    found = []
    for position in range(1, block + 1):
        verified = [each for each in rounds if each["verified"] >= position]
        reached = [each for each in verified if each["accepted"] >= position - 1]
        accepted = [each for each in rounds if each["accepted"] >= position]
        found.append(
            {
                "position": position,
                "verified": len(verified),
                "reached": len(reached),
                "accepted": len(accepted),
                "rate": len(accepted) / len(verified) if verified else 0.0,
                "conditional_rate": len(accepted) / len(reached) if reached else 0.0,
            }
        )
    return found


def lengths(runs: Runs) -> list[int]:
    accepted = [each["accepted"] for each in drafted(runs)]
    return [accepted.count(n) for n in range(max(accepted, default=-1) + 1)]


def tokens_rounds(runs: Runs) -> list[list[int]]:
    prompts = 1 + max(run["prompt"] for run in runs)
    return [
        [sum(1 + each["accepted"] for each in rounds), len(rounds)]
        for prompt in range(prompts)
        for rounds in [drafted([run for run in runs if run["prompt"] == prompt])]
    ]


def categories(runs: Runs, arm: str, section: dict[str, Any]) -> list[dict[str, Any]]:
    names = dict.fromkeys(section["categories_of_prompts"])
    found = []
    for name in names:
        own = [run for run in runs if run["category"] == name]
        rates = by_trial(of_arm(own, arm), decode_rate)
        plain = by_trial(of_arm(own, "plain"), decode_rate)
        facts: dict[str, Any] = {
            "category": name,
            "prompts": section["categories_of_prompts"].count(name),
            "speedup": median(ratios(rates, plain)),
            "tau": tau(of_arm(own, arm)),
        }
        if not section["timed"]:
            del facts["speedup"]
        found.append(facts)
    return found


def round_time(runs: Runs) -> dict[str, Any] | None:
    rounds = rounds_of(runs)
    if not rounds:
        return None
    count = len(rounds)
    draft, verify, whole = (
        sum(each[key] for each in rounds) for key in ("draft_seconds", "verify_seconds", "seconds")
    )
    decode = sum(run["decode_seconds"] for run in runs)
    parts = {
        "draft": draft / count,
        "verify": verify / count,
        "commit": max(whole - draft - verify, 0.0) / count,
        "host": max(decode - whole, 0.0) / count,
    }
    total = parts["draft"] + parts["verify"] + parts["commit"] + parts["host"]
    return {"rounds": count, **parts, "total": total}


def answer_rates(runs: Runs) -> list[list[float]]:
    prompts = 1 + max(run["prompt"] for run in runs)
    return [
        [
            (len(run["token_ids"]) - 1) / run["decode_seconds"] if run["decode_seconds"] else 0.0
            for run in sorted(runs, key=lambda run: run["trial"])
            if run["prompt"] == prompt
        ]
        for prompt in range(prompts)
    ]


def noise(runs: Runs) -> float | None:
    spreads = [
        (max(trials) - min(trials)) / median(trials)
        for trials in answer_rates(of_arm(runs, "plain"))
        if len(trials) > 1 and min(trials) > 0
    ]
    return median(spreads) if spreads else None


def prompt_tokens(runs: Runs) -> float:
    tokens = {run["prompt"]: run["prompt_tokens"] for run in runs}
    return float(sum(tokens.values()) / len(tokens))


if __name__ == "__main__":
    main()
