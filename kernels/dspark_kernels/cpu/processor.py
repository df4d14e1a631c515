"""Which instructions CPU kernels are built of: asked of the processor, or DSPARK_CPU's choice."""

import ctypes
import os
import platform
import sys
from functools import cache
from typing import Literal, NamedTuple

VARIABLE = "DSPARK_CPU"
VariantName = Literal["amx", "vnni512", "avxvnni", "avx2", "neon", "generic"]
X86_BASE = ("avx2", "fma", "f16c")
BASE_FLAGS = "+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe"
ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18  # <asm/prctl.h>


class Variant(NamedTuple):
    """`cpu` and `features` are LLVM's names; all variants give the same bits."""

    name: VariantName
    cpu: str
    features: str


class CpuBackend(NamedTuple):
    """`variant` is None if only plain torch can run; `reason` is for `dspark doctor`."""

    variant: Variant | None
    reason: str


@cache
def variants() -> dict[str, Variant]:
    """Variants that this processor can run, fastest first; none without LLVM."""
    try:
        import llvmlite.binding as llvm
    except ImportError:  # no wheels for this platform
        return {}
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features()
    machine = platform.machine().lower()
    usable: list[Variant] = []
    if machine in ("x86_64", "amd64"):
        if not all(features.get(name) for name in X86_BASE):
            return {}
        if all(features.get(name) for name in ("avx512vnni", "avx512bw", "avx512vl")):
            if features.get("amx-tile") and features.get("amx-int8") and _may_use_tiles():
                usable.append(Variant("amx", cpu, features.flatten()))
            usable.append(Variant("vnni512", cpu, features.flatten()))
        if features.get("avxvnni"):
            usable.append(Variant("avxvnni", "haswell", BASE_FLAGS + ",+avxvnni"))
        usable.append(Variant("avx2", "haswell", BASE_FLAGS))
        usable.append(Variant("generic", "haswell", BASE_FLAGS))
    elif machine in ("arm64", "aarch64"):
        if features.get("dotprod") or cpu.startswith("apple-m"):
            usable.append(Variant("neon", cpu, features.flatten()))
        usable.append(Variant("generic", cpu, features.flatten()))
    return {variant.name: variant for variant in usable}


def _may_use_tiles() -> bool:
    """Linux keeps the registers of tiles from processes that did not ask; it may refuse."""
    return sys.platform == "linux" and _ask_linux(REQUEST_PERMISSION, TILE_DATA) == 0


def _ask_linux(request: int, value: int) -> int:
    """arch_prctl, of which C libraries have no function."""
    answer: int = ctypes.CDLL(None).syscall(ARCH_PRCTL, request, value)
    return answer


def choose_cpu_backend() -> CpuBackend:
    """Raises ValueError if this processor cannot run the variant in DSPARK_CPU."""
    if os.environ.get("DSPARK_KERNELS") == "torch":
        return CpuBackend(None, "DSPARK_KERNELS=torch is set")
    usable = variants()
    if not usable:
        return CpuBackend(None, "llvmlite is not installed, or the processor lacks AVX2")
    forced = os.environ.get(VARIABLE)
    if not forced:
        return CpuBackend(next(iter(usable.values())), "the fastest that this processor runs")
    if forced not in usable:
        known = ", ".join(usable)
        raise ValueError(f"{VARIABLE}={forced} cannot run on this processor; {known} can")
    return CpuBackend(usable[forced], f"{VARIABLE}={forced} is set")
