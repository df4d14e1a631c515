"""Parts of a sum that several programs make: the program that arrives last adds them up.

Who is last is chance. It adds the parts in their own order, so the bits are always the same, and no
launch of its own is needed for it.
"""

import torch

from dspark_kernels.backend import jit, next_power_of_2, tl

_COUNTERS: dict[tuple[torch.device, int], torch.Tensor] = {}


def arrival_counters(device: torch.device, count: int) -> torch.Tensor:
    """At least `count` zeros [int32], which every kernel leaves as zeros.

    All kernels of a device share them, so these run one after the other. They are made at the first
    call, which comes before a capture, and kept, since graphs hold their address.
    """
    key = (device, max(next_power_of_2(count), 1024))
    if key not in _COUNTERS:
        with torch.inference_mode(False):
            _COUNTERS[key] = torch.zeros(key[1], dtype=torch.int32, device=device)
    return _COUNTERS[key]


@jit
def arrives_last(counter: tl.tensor, num_programs: tl.tensor) -> tl.tensor:
    """Whether the other programs have stored their parts. Those are to be loaded past the first
    cache (`.cg`), which knows nothing of other multiprocessors' stores."""
    tl.debug_barrier()  # the ticket is one thread's: all have stored by then
    ticket = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    is_last = ticket == num_programs - 1
    tl.store(counter, 0, mask=is_last)
    return is_last
