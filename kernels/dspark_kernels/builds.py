"""The builds of `python -m dspark_kernels.aot`: each kernel in the configurations that run."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

# files with a function builds() -> list[KernelBuild]
OPS: tuple[str, ...] = (
    "skinny_linear",
    "dequantized_linear",
    "sequential_head",
    "accept_block",
    "distribution_terms",
    "norm",
    "norm_rope_write",
    "paged_attention",
    "swiglu",
    "uniforms",
)


@dataclass(frozen=True, slots=True)
class KernelBuild:
    """One kernel in one configuration; `signature` names the types of its other arguments."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    max_registers: int | None = None
    min_capability: int = 80


def all_builds() -> Iterator[KernelBuild]:
    for op in OPS:
        yield from import_module(f"dspark_kernels.{op}").builds()
