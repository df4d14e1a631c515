"""Facts on stdout: aligned lines, or one JSON object."""

import json
from collections.abc import Mapping, Sequence


def print_json(content: Mapping[str, object]) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


def print_facts(facts: Mapping[str, object]) -> None:
    """One line each: name, then value; None is left out."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        if value is not None:
            print(f"  {name:{width}}  {value}")


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """All columns but the last as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    for row in rows:
        print("  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)))


def size_text(num_bytes: int) -> str:
    size, unit = float(num_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
