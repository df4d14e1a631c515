"""Tables, facts and lines that fit the terminal: columns are dropped or moved, words kept whole."""

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

WIDE = 200  # columns if there is no terminal to ask
GAP = 2
NARROWEST_TEXT = 24  # minimum width of a text column


@dataclass(frozen=True, slots=True)
class Column:
    """`wraps`: may take several lines. If space is short, the highest `rank` is dropped first."""

    title: str
    is_right: bool = False
    wraps: bool = False
    rank: int = 0


def terminal_width() -> int:
    return shutil.get_terminal_size((WIDE, 24)).columns


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    for line in table_lines(columns, rows, terminal_width()):
        print(line)


def table_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Columns that do not fit even after dropping continue in a table below."""
    shown = list(range(len(columns)))
    while _needed(columns, rows, shown) > width and (rank := max(columns[i].rank for i in shown)):
        shown.remove(next(i for i in reversed(shown) if columns[i].rank == rank))
    lines: list[str] = []
    for part in _parts(columns, rows, shown, width):
        widths = _widths(columns, rows, part, width)
        lines += [""] * bool(lines)
        titles = [columns[i].title for i in part]
        for row in (titles, *([row[i] for i in part] for row in rows)):
            lines += _row_lines([columns[i] for i in part], row, widths)
    return lines


def print_facts(facts: Mapping[str, object]) -> None:
    """One line each, name and value, wrapped if needed; None is left out.

    A value with a word that is too long, such as a path, stands below its name.
    """
    shown = {name: str(value) for name, value in facts.items() if value is not None}
    width = max(map(len, shown), default=0)
    left = terminal_width() - width - 2 * GAP
    for name, value in shown.items():
        if max(map(len, value.split()), default=0) > left:
            print(
                f"  {name}\n{textwrap.indent(wrapped(value, width=terminal_width() - 4), '    ')}"
            )
        else:
            print(wrapped(value, indent=f"  {name:{width}}  "))


def wrapped(text: str, *, indent: str = "", width: int | None = None) -> str:
    """Broken between words; the lines after the first are indented as far as `indent`."""
    width = width or terminal_width()
    lines = _words(text, max(width - len(indent), NARROWEST_TEXT))
    return indent + f"\n{' ' * len(indent)}".join(lines)


def fitted(text: str, stream: TextIO) -> str:
    """Broken between words at a terminal, which breaks inside them; the text itself elsewhere."""
    if not stream.isatty():
        return text
    width = terminal_width()
    lines = text.split("\n")
    return "\n".join(wrapped(line, width=width) if len(line) > width else line for line in lines)


def say(line: str) -> None:
    """Prints on stderr, which takes everything but the answer."""
    print(fitted(line, sys.stderr), file=sys.stderr, flush=True)


def _words(text: str, width: int) -> list[str]:
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return lines or [""]


def _parts(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], kept: list[int], width: int
) -> list[list[int]]:
    """Columns that fit side by side; each part begins with the first column."""
    tables = [kept[:1]]
    for index in kept[1:]:
        if len(tables[-1]) > 1 and _needed(columns, rows, [*tables[-1], index]) > width:
            tables.append(kept[:1])
        tables[-1].append(index)
    return tables


def _needed(columns: Sequence[Column], rows: Sequence[Sequence[str]], kept: list[int]) -> int:
    narrowest = [
        min(_widest(columns, rows, i), NARROWEST_TEXT)
        if columns[i].wraps
        else _widest(columns, rows, i)
        for i in kept
    ]
    return sum(narrowest) + GAP * (len(kept) - 1)


def _widths(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], part: list[int], width: int
) -> list[int]:
    """A text column takes the width that the others leave."""
    fixed = sum(_widest(columns, rows, i) for i in part if not columns[i].wraps)
    left = max(width - fixed - GAP * (len(part) - 1), NARROWEST_TEXT)
    return [
        min(_widest(columns, rows, i), left) if columns[i].wraps else _widest(columns, rows, i)
        for i in part
    ]


def _widest(columns: Sequence[Column], rows: Sequence[Sequence[str]], index: int) -> int:
    return max(len(columns[index].title), *(len(row[index]) for row in rows), 0)


def _row_lines(columns: Sequence[Column], row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [
        _words(cell, width) if column.wraps else [cell]
        for column, cell, width in zip(columns, row, widths, strict=True)
    ]
    lines = []
    for number in range(max(map(len, cells))):
        parts = (each[number] if number < len(each) else "" for each in cells)
        line = (" " * GAP).join(
            f"{part:>{width}}" if column.is_right else f"{part:{width}}"
            for column, part, width in zip(columns, parts, widths, strict=True)
        )
        lines.append(line.rstrip())
    return lines
