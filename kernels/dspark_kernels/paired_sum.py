"""Sums of a row whose order is stated, so that every kernel that makes them has the same bits.

tl.sum adds in an order that follows from how the compiler deals a row out to threads, and so from
their number. A sum of two has no order.
"""

from dspark_kernels.backend import jit, tl

MOST_LEVELS = tl.constexpr(20)


@jit
def paired_sum(values: tl.tensor, SIZE: tl.constexpr) -> tl.tensor:
    """Of [SIZE], a power of two: neighbours are added, then neighbouring pairs, and so on."""
    for level in tl.static_range(MOST_LEVELS):
        if SIZE >> level > 1:
            values = tl.sum(tl.reshape(values, (SIZE >> (level + 1), 2)), axis=1)
    return tl.sum(values, axis=0)


@jit
def squared(values: tl.tensor) -> tl.tensor:
    """In float32, rounded: never half of a fused addition, which the compiler would choose."""
    return tl.fma(values, values, tl.zeros_like(values))
