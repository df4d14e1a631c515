"""The only place that decides between Triton's kernels and plain torch, with the reason.

Triton runs on CUDA tensors, and on any tensor under TRITON_INTERPRET=1, which has to be set before
this file is imported. DSPARK_KERNELS=torch turns the kernels off. Without a GPU Triton is not even
imported, unless it was before or DSPARK_KERNELS=triton asks for it, to compile for other machines.
"""

import os
import platform
import sys
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

__all__ = [
    "Backend",
    "card_capability",
    "choose_backend",
    "cuda_capability",
    "jit",
    "jit_unspecialized",
    "next_power_of_2",
    "tl",
    "triton",
    "use_triton",
]


def _may_run_triton() -> bool:
    """Importing it takes a sixth of a second and 70 MB."""
    is_asked = os.environ.get("DSPARK_KERNELS") == "triton" or "triton" in sys.modules
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return is_asked or is_interpreted or torch.cuda.is_available()


IS_WANTED = _may_run_triton()
try:
    if not IS_WANTED:
        raise ImportError
    import triton
    import triton.language as tl
except ImportError:  # nor are there wheels for macOS and Windows: files with kernels import anyway
    triton = SimpleNamespace(jit=lambda function=None, **_: function or (lambda kernel: kernel))
    tl = SimpleNamespace(constexpr=lambda value: value, tensor=object)
jit: Callable[[Callable[..., Any]], Any] = triton.jit
HAS_TRITON = not isinstance(triton, SimpleNamespace)
IS_INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
MIN_CAPABILITY = (8, 0)  # bf16 in the tensor cores
NO_TRITON = {
    "Windows": "Triton has no wheel for Windows: pip install triton-windows, or use WSL",
    "Darwin": "Triton has no wheel for macOS",
}
DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


class Backend(NamedTuple):
    """`name` is triton or torch; `reason` is for `dspark doctor`."""

    name: str
    reason: str


def choose_backend(device: torch.device) -> Backend:
    """The backend for tensors on `device`."""
    if os.environ.get("DSPARK_KERNELS") == "torch":
        return Backend("torch", "DSPARK_KERNELS=torch is set")
    return _backend_of(device)


@cache  # every operation asks, and what a device is does not change
def _backend_of(device: torch.device) -> Backend:
    if IS_WANTED and not HAS_TRITON:
        return Backend("torch", NO_TRITON.get(platform.system(), "Triton is not installed"))
    if IS_INTERPRETED:
        return Backend("triton", "interpreted: TRITON_INTERPRET=1 is set")
    if device.type != "cuda":
        return Backend("torch", f"there are no kernels for {device.type}")
    if torch.version.hip is not None:
        return Backend("torch", "an AMD GPU: the kernels are for NVIDIA's")
    capability = cuda_capability(device)
    if capability < MIN_CAPABILITY:
        return Backend("torch", f"compute capability {capability[0]}.{capability[1]} is below 8.0")
    return Backend("triton", f"Triton {triton.__version__} on {torch.cuda.get_device_name(device)}")


@cache
def cuda_capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def card_capability(device: torch.device) -> int:
    """As 90 for an H100; 0 without a card."""
    if device.type != "cuda":
        return 0
    major, minor = cuda_capability(device)
    return 10 * major + minor


def use_triton(x: torch.Tensor, *others: torch.Tensor, has_backward: bool = False) -> bool:
    """Whether an operation on x runs as a kernel; one without a backward leaves training alone."""
    if x.dtype not in DTYPES or (x.device.type == "cpu" and not IS_INTERPRETED):
        return False
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *others))
    return (has_backward or not trains) and choose_backend(x.device).name == "triton"


def jit_unspecialized(*names: str) -> Callable[[Callable[..., Any]], Any]:
    """jit without a variant for special values of these arguments: variants may reorder sums."""
    decorator: Callable[[Callable[..., Any]], Any] = triton.jit(do_not_specialize=list(names))
    return decorator


def next_power_of_2(number: int) -> int:
    """The smallest one that is not below a positive number."""
    return 1 << (number - 1).bit_length()
