"""Programmatic dependent launch: a kernel starts while the one before it ends (sm_90 and later).

Until it has waited, a kernel touches nothing but weights, which it fetches into the L2 meanwhile.
To wait is to wait for the end of the kernel in front. Every program of every such kernel waits, so
the kernel in front has ended after all that were before it, and what has waited sees all that they
have stored. Kernels without this attribute, such as PyTorch's, wait for that end as always.

DSPARK_PDL=off turns it off.
"""

import os
from typing import Any

import torch

from dspark_kernels.backend import HAS_TRITON, card_capability, jit, tl

if HAS_TRITON:
    from triton.language.extra import cuda as cuda_language
else:
    cuda_language = None

MIN_CAPABILITY = 90
LINE = 128  # bytes that the L2 fetches at once


def launch_options(device: torch.device) -> dict[str, Any]:
    """Arguments of the launch of a kernel that takes DEPENDENT."""
    if os.environ.get("DSPARK_PDL") == "off" or not starts_early_at(card_capability(device)):
        return {"DEPENDENT": False}
    return {"DEPENDENT": True, "launch_pdl": True}


def starts_early_at(capability: int) -> bool:
    """Whether a card can, and this Triton too."""
    return capability >= MIN_CAPABILITY and hasattr(cuda_language, "gdc_wait")


@jit
def wait_for_previous(DEPENDENT: tl.constexpr) -> None:
    """First of all, but for touching weights. The next kernel may start to touch its own."""
    let_next_start(DEPENDENT)
    wait_alone(DEPENDENT)


@jit
def let_next_start(DEPENDENT: tl.constexpr) -> None:
    if DEPENDENT:
        cuda_language.gdc_launch_dependents()


@jit
def wait_alone(DEPENDENT: tl.constexpr) -> None:
    """As wait_for_previous, of a long kernel: the next one may start from `let_next_start` on."""
    if DEPENDENT:
        cuda_language.gdc_wait()


@jit
def touch(address: tl.tensor) -> None:
    """Asks for the line of each address, without waiting for it."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [address],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
