"""A bench report on the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dspark.bench.config import BenchConfig
from dspark.bench.regressions import Change
from dspark.plural import counted
from dspark_cli.output.tables import Column, print_table, wrapped
from dspark_cli.views.bench import bench_table, partial_line
from dspark_cli.views.comparison import print_comparison
from dspark_cli.views.report_blocks import (
    Block,
    Heading,
    Paragraph,
    Table,
    peer_blocks,
    report_blocks,
    round_blocks,
)

if TYPE_CHECKING:
    from dspark.bench.report_document import Measured
    from dspark.bench.sections import Section


def print_report(measured: "Measured", document: Mapping[str, Any], config: BenchConfig) -> None:
    session = measured.opened.plain
    first = measured.sections[0].comparison
    trials = f"median of {counted(first.heads[0].report.trials, 'trial')}"
    method = trials if first.is_timed else "whole blocks verified"
    title = (
        f"{session.name} on {session.runtime.device} in {session.runtime.dtype}, at most "
        f"{counted(config.max_tokens, 'token')} per prompt, {method}"
    )
    print(wrapped(title) + "\n")
    for section, facts in zip(measured.sections, document["sections"], strict=True):
        if len(measured.sections) > 1:
            print(f"── {section.condition.name} ──\n")
        _print_section(section, is_pair=measured.is_pair)
        if section.comparison.is_timed:
            _print_blocks(round_blocks(facts, document["floor"]))
    if document["peers"]:
        _print_blocks(peer_blocks(document["peers"]))
    prompts = measured.prompt_set
    print(wrapped(f"prompts: {prompts.name}, {document['sections'][0]['prompt_format']}"))
    for notice in measured.notices:
        print(wrapped(f"! {notice.text}"))
    print("\n" + wrapped(document["sections"][0]["expect"]))


def _print_section(section: "Section", *, is_pair: bool) -> None:
    comparison = section.comparison
    if comparison.is_partial:
        print(wrapped(partial_line(comparison.heads[0].report)) + "\n")
    if is_pair:
        print(bench_table(comparison.heads[0].report) + "\n")
    else:
        print_comparison(comparison)
        print()


def print_stored(document: Mapping[str, Any]) -> None:
    """A report that was read from a file."""
    _print_blocks(report_blocks(document))


def _print_blocks(blocks: Iterable[Block]) -> None:
    """Tables and sentences; a terminal has no plots of them."""
    for block in blocks:
        if isinstance(block, Heading):
            print(f"── {block.text} ──\n")
        if isinstance(block, Table):
            print(block.title)
            first, *others = block.columns
            columns = [Column(first), *(Column(each, is_right=True) for each in others)]
            print_table(columns, block.rows)
            print()
        elif isinstance(block, Paragraph):
            print(wrapped(block.text) + "\n")


CHANGE_COLUMNS = (
    Column("condition", rank=1),
    Column("arm"),
    Column("figure"),
    Column("old", is_right=True),
    Column("new", is_right=True),
    Column("new over old", is_right=True),
    Column("99 % interval", is_right=True, rank=2),
    Column("verdict"),
)


def print_changes(changes: Sequence[Change], old: Mapping[str, Any]) -> None:
    print(f"\nagainst the report of {old['date']}")
    print_table(CHANGE_COLUMNS, [_change_row(each) for each in changes])
    worse = [each for each in changes if each.verdict == "worse"]
    if worse:
        names = ", ".join(f"{each.arm} ({each.figure})" for each in worse)
        print("\n" + wrapped(f"! worse by more than noise: {names}"))
    else:
        print("\nnothing is worse by more than noise")


def _change_row(change: Change) -> list[str]:
    if change.figure == "identity":
        words = ["identical" if each else "differs" for each in (change.old, change.new)]
        return [change.condition, change.arm, change.figure, *words, "", "", change.verdict]
    interval = change.interval
    return [
        change.condition,
        change.arm,
        change.figure,
        f"{change.old:.2f}",
        f"{change.new:.2f}",
        f"{change.change:.3f}",
        "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
        change.verdict,
    ]
