"""A concurrency bench as one table per number of requests, and two plots."""

from dspark.bench.concurrency import LoadFigures, LoadReport
from dspark.bench.config import SCHEDULERS
from dspark.plural import counted
from dspark_cli.output.tables import Column, print_table, wrapped
from dspark_cli.output.text_plot import text_plot

COLUMNS = (
    Column("tok/s"),
    Column("total", is_right=True),
    Column("of plain", is_right=True),
    Column("lowest–highest", is_right=True, rank=3),
    Column("each", is_right=True, rank=1),
    Column("first token", is_right=True, rank=2),
    Column("gap p50", is_right=True, rank=1),
    Column("p99", is_right=True, rank=1),
    Column("τ", is_right=True),
    Column("verified", is_right=True),
    Column("parked", is_right=True),
)


def print_load(report: LoadReport) -> None:
    for count in report.counts:
        print(f"{counted(count, 'request')} at a time")
        print_table(COLUMNS, [_row(report.of(arm, count)) for arm in report.arms])
        print()
    for line in _plots(report):
        print(line)
    print()
    print(wrapped(_verdict(report)))


def _row(each: LoadFigures) -> list[str]:
    ratio = each.over_plain
    return [
        each.arm,
        f"{each.total.median:.1f}",
        f"{ratio.median:.2f}×",
        f"{ratio.low:.2f}–{ratio.high:.2f}",
        f"{each.per_request:.1f}",
        f"{each.first_token_seconds:.2f} s",
        f"{1000 * each.gap_p50:.1f} ms",
        f"{1000 * each.gap_p99:.1f} ms",
        f"{each.tau:.2f}",
        f"{each.verified:.2f}",
        f"{each.parked:.0%}",
    ]


def _plots(report: LoadReport) -> list[str]:
    shown = [arm for arm in report.arms if not arm.startswith("fixed")]
    shown += [arm for arm in report.arms if arm.startswith("fixed")][-1:]
    rates = {
        arm: [(count, report.of(arm, count).total.median) for count in report.counts]
        for arm in shown
    }
    budgets = {
        arm: [(count, report.of(arm, count).verified) for count in report.counts]
        for arm in report.arms
        if arm in SCHEDULERS
    }
    return [
        *text_plot(rates, "requests", "tokens per second, all requests"),
        "",
        *text_plot(budgets, "requests", "drafts verified per request and round"),
    ]


def _verdict(report: LoadReport) -> str:
    differing = [each for each in report.figures if each.is_identical is False]
    if differing:
        names = ", ".join(f"{each.arm} at {each.requests}" for each in differing)
        return f"output: differs from plain decoding with {names}"
    if any(each.is_identical is None for each in report.figures):
        return "output: sampled without a seed, so not compared token by token"
    return "output: every answer identical to plain decoding, at every number of requests"
