"""The builds of `python -m dspark_kernels.aot`: each kernel in the configurations that run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from dspark_kernels.dependent_launch import starts_early_at

MOST_SPILLED = 16  # bytes a thread: a few before a loop, as in attention over float32, cost nothing
WARP_SIZE = 32
REGISTERS_PER_BLOCK = 65536  # as many as a multiprocessor has

# files with a function builds() -> list[KernelBuild]
OPS: tuple[str, ...] = (
    "skinny_linear",
    "dequantized_linear",
    "sequential_head",
    "gru_head",
    "candidate_block",
    "block_filter",
    "accept_block",
    "distribution_terms",
    "norm",
    "norm_rope_write",
    "paged_attention",
    "swiglu",
    "embedded_blocks",
    "round_state",
    "persistent_layer_call",
    "deepseek_v4.file_matrix",
    "deepseek_v4.norm_turn",
    "deepseek_v4.streams",
    "deepseek_v4.compressor",
    "deepseek_v4.indexer",
    "deepseek_v4.latent_attention",
    "deepseek_v4.gated_rows",
    "deepseek_v4.route",
    "deepseek_v4.fp4_experts",
    "deepseek_v4.host_exchange",
)


@dataclass(frozen=True, slots=True)
class KernelBuild:
    """One kernel in one configuration; `signature` names the types of its other arguments.

    A kernel with DEPENDENT starts early where the card can, whatever is given here. `stages_at` is
    for one whose stages depend on the card. `has_substitute`: where it spills, other kernels are
    launched in its place, so that this is no failure. `fuses`: the compiler may make a product
    and a sum one operation.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    max_registers: int | None = None
    min_capability: int = 80
    stages_at: Callable[[int], int] | None = None
    has_substitute: bool = False
    fuses: bool = True

    def stages(self, capability: int) -> int:
        return self.num_stages if self.stages_at is None else self.stages_at(capability)

    def constants(self, capability: int) -> dict[str, Any]:
        if "DEPENDENT" not in self.constexprs:
            return self.constexprs
        return {**self.constexprs, "DEPENDENT": starts_early_at(capability)}


def all_builds() -> Iterator[KernelBuild]:
    for op in OPS:
        yield from import_module(f"dspark_kernels.{op}").builds()
