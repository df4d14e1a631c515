"""Which library holds a function, and how its text is written."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dspark_kernels.cpu.processor import Variant


class Source(NamedTuple):
    write: Callable[[], str]
    exports: Sequence[str]


def library_of(function: str) -> str:
    """Matrices have a library each, because few of their formats are ever needed together."""
    from dspark_kernels.cpu.driver_text import EXPORTS

    if function.startswith("matrix_"):
        return function
    return "driver" if function in EXPORTS else "rows"


def source(library: str, variant: Variant) -> Source:
    from dspark_kernels.cpu import driver_text, matrix_text, rounded_text

    is_x86 = variant.name != "neon" and not _is_arm()
    if library == "driver":
        return Source(lambda: driver_text.driver_text(is_x86), driver_text.EXPORTS)
    if library == "rows":
        return Source(rounded_text.rounded_text, rounded_text.EXPORTS)
    kind = library.removeprefix("matrix_")
    return Source(lambda: matrix_text.matrix_text(kind, variant.name), [library])


def _is_arm() -> bool:
    import platform

    return platform.machine().lower() in ("arm64", "aarch64")
