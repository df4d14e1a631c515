"""A meeting of all programs of a launch: none goes on before all have come.

All of them have to be on the card at once, which whoever launches has to see to. Nothing that was
stored before the meeting is read from a first cache after it: acquiring empties that.
"""

import torch

from dspark_kernels.backend import jit, tl

_BARRIERS: dict[torch.device, torch.Tensor] = {}


def barrier_of(device: torch.device) -> torch.Tensor:
    """One word [int32] of each device. Made at the first call, which comes before a capture."""
    if device not in _BARRIERS:
        with torch.inference_mode(False):
            _BARRIERS[device] = torch.zeros(1, dtype=torch.int32, device=device)
    return _BARRIERS[device]


@jit
def meet_others(barrier: tl.tensor) -> None:
    """The programs add 2^31 together: the sign turns over, and all other bits are zeros again."""
    tl.debug_barrier()  # the tickets are one thread's: all have stored by then
    rest = 0x7FFFFFFF - (tl.num_programs(0) - 2)
    ticket = tl.where(tl.program_id(0) == 0, rest, 1)
    before = tl.atomic_add(barrier, ticket, sem="acq_rel", scope="gpu")
    while (tl.atomic_add(barrier, 0, sem="acquire", scope="gpu") ^ before) >= 0:
        pass
    tl.debug_barrier()
