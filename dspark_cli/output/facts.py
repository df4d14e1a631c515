"""Facts on stdout as one JSON object, and sizes with units."""

import json
from collections.abc import Mapping


def print_json(content: Mapping[str, object]) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


def size_text(num_bytes: int) -> str:
    size, unit = float(num_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def size_or_unknown(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else size_text(num_bytes)
