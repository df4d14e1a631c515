"""Which library holds a function, and how its text is written."""

import platform
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from dspark_kernels.cpu.processor import Variant


class Source(NamedTuple):
    write: Callable[[], str]
    exports: Sequence[str]


def library_of(function: str) -> str:
    """Operations with formats or sizes have a library for each: few are ever needed."""
    from dspark_kernels.cpu import experts_text
    from dspark_kernels.cpu.deepseek_v4 import operation_texts
    from dspark_kernels.cpu.driver_text import EXPORTS
    from dspark_kernels.cpu.moe import operation_texts as moe

    if function.startswith(("matrix_", "attend_", "embed_", "floats_")):
        return function
    if function in experts_text.EXPORTS:
        return "experts"
    if function in operation_texts.WRITERS:
        return "deepseek_v4"
    if function in moe.WRITERS:
        return "moe"
    return "driver" if function in EXPORTS else "rows"


def source(library: str, variant: Variant) -> Source:
    from dspark_kernels.cpu import driver_text, experts_text, matrix_text, rows_text
    from dspark_kernels.cpu.deepseek_v4.operation_texts import WRITERS, deepseek_v4_text
    from dspark_kernels.cpu.file_weight import PACKINGS
    from dspark_kernels.cpu.float_matrix_text import float_matrix_text
    from dspark_kernels.cpu.moe import operation_texts as moe

    if library == "driver":
        return Source(lambda: driver_text.driver_text(not _is_arm()), driver_text.EXPORTS)
    if library == "experts":
        return Source(lambda: experts_text.experts_text(variant.name), experts_text.EXPORTS)
    if library == "deepseek_v4":
        return Source(deepseek_v4_text, list(WRITERS))
    if library == "moe":
        return Source(lambda: moe.moe_text(variant.name), list(moe.WRITERS))
    if library == "rows":
        return Source(rows_text.rows_text, rows_text.EXPORTS)
    kind, _, which = library.partition("_")
    if kind == "attend":
        *floats, head_dim, group = which.split("_")
        sizes = int(head_dim), int(group)
        return Source(lambda: rows_text.attend_text(*sizes, floats=bool(floats)), [library])
    if kind == "floats":
        packed = next(each for each in PACKINGS if each == which.removeprefix("counted_"))
        is_counted = which != packed
        write = partial(float_matrix_text, packed, variant.name, is_counted=is_counted)
        return Source(write, [library])
    if kind == "embed":
        return Source(lambda: rows_text.embed_text(which), [library])
    return Source(lambda: matrix_text.matrix_text(which, variant.name), [library])


def _is_arm() -> bool:
    return platform.machine().lower() in ("arm64", "aarch64")
