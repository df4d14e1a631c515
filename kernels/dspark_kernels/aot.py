"""Compile every kernel for every card ahead of time and check the resources it uses.

    DSPARK_KERNELS=triton python -m dspark_kernels.aot [--cards 80,90] [--only skinny]

Needs no GPU. Exits with 1 if a kernel spills registers or needs more than a card has.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dspark_kernels.backend import HAS_TRITON
from dspark_kernels.builds import (
    MOST_SPILLED,
    REGISTERS_PER_BLOCK,
    WARP_SIZE,
    KernelBuild,
    all_builds,
)

# compute capability -> shared memory that one block may ask for, in bytes
SHARED_LIMITS = {
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    120: 99 * 1024,
}


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources of one compiled kernel. `stack`: spilled registers, in bytes per thread;
    `inexact`: instructions that do not round correctly, in a kernel that fuses nothing."""

    name: str
    capability: int
    num_threads: int
    registers: int
    stack: int
    shared: int
    may_spill: bool = False
    inexact: tuple[str, ...] = ()

    def breaches(self) -> list[str]:
        breaches = []
        if self.stack > MOST_SPILLED and not self.may_spill:
            breaches.append(f"spills {self.stack} bytes per thread")
        if self.shared > SHARED_LIMITS[self.capability]:
            breaches.append(f"needs {self.shared} bytes of shared memory")
        if self.registers * self.num_threads > REGISTERS_PER_BLOCK:
            breaches.append(f"needs {self.registers * self.num_threads} registers per block")
        if self.inexact:
            breaches.append(f"computes by {', '.join(self.inexact)}")
        return breaches


def compiled(build: KernelBuild, capability: int) -> Any:
    """A kernel for a card, as Triton compiles it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    signature = {name: build.signature.get(name, "constexpr") for name in names}
    # as at a launch, where sizes and addresses are multiples of 16
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, type_name in build.signature.items()
        if type_name.startswith("*") or type_name == "i32"
    }
    constants = build.constants(capability)
    source = ASTSource(build.kernel, signature, constexprs=constants, attrs=aligned)
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, WARP_SIZE),
        options={
            "num_warps": build.num_warps,
            "num_stages": build.stages(capability),
            "maxnreg": build.max_registers,
            "enable_fp_fusion": build.fuses,
        },
    )


def measure(build: KernelBuild, capability: int) -> Usage:
    """Compile one kernel for one card and read its resources from the binary."""
    kernel = compiled(build, capability)
    registers, stack = _resources(kernel.asm["cubin"])
    num_threads = build.num_warps * WARP_SIZE
    shared = kernel.metadata.shared
    inexact = () if build.fuses else inexact_instructions(kernel.asm["ptx"])
    may_spill = build.has_substitute
    return Usage(build.name, capability, num_threads, registers, stack, shared, may_spill, inexact)


def inexact_instructions(ptx: str) -> tuple[str, ...]:
    """Those that approximate or take subnormal numbers for zero."""
    found = re.findall(r"\b[a-z][\w.]*\.(?:approx|full|ftz)[\w.]*", ptx)
    return tuple(sorted(set(found)))


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack a thread, from the cuobjdump that Triton ships."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", report)
    if usage is None:
        raise RuntimeError(f"cuobjdump reports no resources:\n{report}")
    registers, stack, local = map(int, usage.groups())
    return registers, stack + local


def _measure_at(index: int, capabilities: Iterable[int]) -> list[Usage]:
    """For a worker process, which finds the build by its index: kernels cannot be sent."""
    build = list(all_builds())[index]
    return [measure(build, c) for c in capabilities if c >= build.min_capability]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cards", default=",".join(map(str, SHARED_LIMITS)))
    parser.add_argument("--only", default="", help="a part of the kernels' names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="that compile")
    options = parser.parse_args()
    if not HAS_TRITON:
        parser.error("Triton is only imported where there is a GPU: set DSPARK_KERNELS=triton")
    capabilities = [int(card) for card in options.cards.split(",")]
    indices = [i for i, build in enumerate(all_builds()) if options.only in build.name]
    print(f"{'kernel':<44}{'sm':>4}{'threads':>9}{'registers':>11}{'stack':>7}{'shared':>8}")
    num_kernels, failed = 0, 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for usages in pool.map(partial(_measure_at, capabilities=capabilities), indices):
            for usage in usages:
                breaches = usage.breaches()
                num_kernels, failed = num_kernels + 1, failed + bool(breaches)
                print(
                    f"{usage.name:<44}{usage.capability:>4}{usage.num_threads:>9}"
                    f"{usage.registers:>11}{usage.stack:>7}{usage.shared:>8}"
                    f"{'  ' if breaches else ''}{', '.join(breaches)}",
                    flush=True,
                )
    print(f"{num_kernels} binaries, {failed} beyond their card")
    return 1 if failed or not num_kernels else 0


if __name__ == "__main__":
    sys.exit(main())
