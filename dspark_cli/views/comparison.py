"""A comparison of heads as tables in the paper's format: a row per head, a column per category."""

from typing import TYPE_CHECKING

from dspark.config import ALGORITHMS, HEADLESS
from dspark_cli.output.tables import Column, print_table, wrapped
from dspark_cli.views.bench import verdict

if TYPE_CHECKING:
    from dspark.bench.comparison import Comparison, HeadFigures

TITLES: dict[str, str] = {name: facts.title for name, facts in ALGORITHMS.items()}
TITLES |= HEADLESS.items()
WELL_KNOWN = {"gsm8k_test": "GSM8K", "humaneval": "HumanEval", "mt_bench": "MT-Bench"}


def print_comparison(comparison: "Comparison") -> None:
    names = [each.category for each in comparison.heads[0].report.categories]
    categories = [WELL_KNOWN.get(name, name) for name in names]
    _print_accepted_lengths(comparison, categories)
    if comparison.is_timed:
        _print_speedups(comparison.heads, categories)
    _print_acceptance(comparison.heads)
    for each in comparison.heads:
        print(wrapped(f"{each.head.name}: {verdict(each.report)}"))


def _print_accepted_lengths(comparison: "Comparison", categories: list[str]) -> None:
    heads = [
        [
            each.head.name,
            TITLES[each.head.algorithm],
            f"{each.head.parameters / 1e6:.2f} M",
            *(f"{tau:.2f}" for tau in (*each.category_taus, each.mean_tau)),
        ]
        for each in comparison.heads
    ]
    gains = [
        [
            f"{gain.name} over {gain.over}",
            *("", ""),
            *(f"{share:+.1%}" for share in (*gain.by_category, gain.mean)),
        ]
        for gain in comparison.gains
    ]
    facts = [Column("kind", rank=1), Column("parameters", is_right=True, rank=2)]
    _print("accepted length τ", facts, [*categories, "mean"], [*heads, *gains])


def _print_speedups(heads: "tuple[HeadFigures, ...]", categories: list[str]) -> None:
    rows = []
    for each in heads:
        whole = each.report.speedup
        figures = [f"{category.speedup:.2f}×" for category in each.report.categories]
        spread = f"{whole.low:.2f}–{whole.high:.2f}"
        rows.append([each.head.name, *figures, f"{whole.median:.2f}×", spread])
    _print("speed-up", [], [*categories, "all", "lowest–highest"], rows)


def _print_acceptance(heads: "tuple[HeadFigures, ...]") -> None:
    block = max(len(each.report.acceptance_by_position) for each in heads)
    rows = []
    for each in heads:
        rates = [f"{place.conditional_rate:.0%}" for place in each.report.acceptance_by_position]
        rows.append([each.head.name, *rates, *[""] * (block - len(rates))])
    _print("accepted once reached, by draft", [], [str(k) for k in range(1, block + 1)], rows)


def _print(title: str, facts: list[Column], figures: list[str], rows: list[list[str]]) -> None:
    """The first column is the head; figures are right-aligned."""
    print(title)
    columns = [Column("head"), *facts, *(Column(each, is_right=True) for each in figures)]
    print_table(columns, rows)
    print()
