"""Weights in the codes of a GGUF inside safetensors, described in the header.

Each is a vector of bytes, as the CPU's kernels read it; its format and its shape stand in the
header's metadata. Needs no torch.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

METADATA = "gguf_codes"
CONVERSION = 3  # increased when the conversion of a GGUF changes its result
STATED, CONVERSION_OF_FIRST_CODES = "gguf_conversion", 3  # metadata, which the first codes lack

# bytes of a number, with its scales, of the formats that kernels on a GPU multiply with
GPU_CODE_BYTES = {"q4_0": 0.59375, "q4_1": 0.625, "q4_k": 0.75, "q5_0": 1.0625, "q8_0": 1.0625}


class Codes(NamedTuple):
    """The format, and the shape [N, K] of the numbers that the codes stand for."""

    kind: str
    shape: tuple[int, int]


def codes_metadata(codes: Mapping[str, Codes]) -> dict[str, str]:
    """Name -> codes, as safetensors' metadata."""
    stated = {name: [each.kind, *each.shape] for name, each in codes.items()}
    return {METADATA: json.dumps(stated)} if stated else {}


def conversion_of_header(header: Mapping[str, Any]) -> int:
    """The conversion that wrote a file; 0 of one from before codes."""
    metadata = header.get("__metadata__", {})
    stated = metadata.get(STATED, CONVERSION_OF_FIRST_CODES if METADATA in metadata else 0)
    return int(stated)


def codes_of_header(header: Mapping[str, Any]) -> dict[str, Codes]:
    """By name, those of one file. Raises ValueError if their description is invalid."""
    stated = json.loads(header.get("__metadata__", {}).get(METADATA, "{}"))
    if not isinstance(stated, dict) or not all(map(_is_sound, stated.values())):
        raise ValueError(f"{METADATA} is not a table of formats and shapes")
    if missing := stated.keys() - header.keys():
        raise ValueError(f"{METADATA} lists {next(iter(missing))[:80]!r}, which is missing")
    return {name: Codes(kind, (rows, columns)) for name, (kind, rows, columns) in stated.items()}


def _is_sound(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str):
        return False
    return all(type(size) is int and 0 < size < 1 << 40 for size in entry[1:])
