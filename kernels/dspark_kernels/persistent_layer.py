"""A decoder layer for the few rows of a decoding step as one launch, whose programs stay.

Everywhere else a layer is eight launches. The sums are the same, to the bit. Nobody has measured
yet which of the two is quicker: DSPARK_PERSISTENT=on asks for this one, where it can.
"""

import os
from collections.abc import Hashable
from functools import cache
from typing import Any, NamedTuple

import torch

from dspark_kernels.backend import IS_INTERPRETED, card_capability, use_triton
from dspark_kernels.builds import MOST_SPILLED, REGISTERS_PER_BLOCK, WARP_SIZE
from dspark_kernels.dependent_launch import MIN_CAPABILITY, launch_options
from dspark_kernels.paged_attention import sizes_of_a_block, warps_of_a_block
from dspark_kernels.persistent_layer_call import (
    LAUNCH,
    NUM_WARPS,
    CachedLayer,
    LayerWeights,
    Weight,
    call_of,
    heads_of,
)
from dspark_kernels.persistent_layer_kernel import NUM_PHASES, WHOLE, persistent_layer_kernel
from dspark_kernels.quantized_weight import QuantizedWeight
from dspark_kernels.residual_stream import ResidualStream
from dspark_kernels.skinny_linear_kernels import ROW_TILE

INTERPRETED_PROGRAMS = 3
_FITS: dict[Hashable, bool] = {}


class CardLimits(NamedTuple):
    """Multiprocessors of a card, and bytes of shared memory of each."""

    multiprocessors: int
    shared: int


@cache
def card_limits(device: torch.device) -> CardLimits:
    if IS_INTERPRETED:
        return CardLimits(INTERPRETED_PROGRAMS, 1 << 20)
    card = torch.cuda.get_device_properties(device)
    return CardLimits(card.multi_processor_count, card.shared_memory_per_multiprocessor)


def is_persistent() -> bool:
    """Whether layers of one launch are asked for."""
    return os.environ.get("DSPARK_PERSISTENT") == "on"


def persistent_layer(
    stream: ResidualStream,
    weights: LayerWeights,
    cached: CachedLayer,
    eps: float,
    tap: torch.Tensor | None = None,
) -> ResidualStream | None:
    """The stream behind the layer, and its keys and values stored; `tap` [N, H] receives what comes
    in. None where the layer has to be launched kernel by kernel."""
    if not _has_shape(stream, weights, cached):
        return None
    limits = card_limits(stream.total.device)
    arguments, constants = call_of(stream.total, weights, cached, eps, tap, limits.multiprocessors)
    if not _run(arguments, constants, stream.total.device, limits):
        return None
    return ResidualStream(arguments["out"])


def _has_shape(stream: ResidualStream, weights: LayerWeights, cached: CachedLayer) -> bool:
    """One tile of rows, and weights of one format; attention with as many warps as products. Before
    sm_90 some versions of Triton spill."""
    x = stream.total
    if not IS_INTERPRETED and card_capability(x.device) < MIN_CAPABILITY:
        return False
    if stream.update is not None or not 1 <= len(x) <= ROW_TILE.value or not use_triton(x):
        return False
    matrices = weights.matrices().values()
    if len({_format_of(weight) for weight in matrices}) > 1:
        return False
    if any(isinstance(w, QuantizedWeight) and w.order is not None for w in matrices):
        return False
    group, _, head_dim = heads_of(weights, cached)
    sizes = sizes_of_a_block(group, head_dim, x.element_size())
    return warps_of_a_block(sizes, x.element_size()) == NUM_WARPS


def _format_of(weight: Weight) -> Hashable:
    if isinstance(weight, torch.Tensor):
        return weight.dtype, weight.is_contiguous()
    has_leasts = weight.leasts is not None
    return weight.kind, weight.group, weight.rows_per_scale, weight.scales.dtype, has_leasts


def _run(
    arguments: dict[str, Any], constants: dict[str, Any], device: torch.device, limits: CardLimits
) -> bool:
    """One launch, if it fits; interpreted, where programs run one after the other, one for each
    phase."""
    grid, options = (limits.multiprocessors,), launch_options(device)
    if IS_INTERPRETED:
        for phase in range(NUM_PHASES):
            persistent_layer_kernel[grid](**arguments, **constants, PHASE=phase, **options)
        return True
    if not options["DEPENDENT"]:
        options["launch_cooperative_grid"] = True
    given = {**arguments, **constants, "PHASE": WHOLE.value, **options, **LAUNCH}
    key = (device, tuple(constants.items()))
    if key not in _FITS:
        _FITS[key] = fits(persistent_layer_kernel.warmup(grid=grid, **given), limits)
    if _FITS[key]:
        persistent_layer_kernel[grid](**given)
    return _FITS[key]


def fits(compiled: Any, limits: CardLimits) -> bool:
    """Whether every multiprocessor takes one program: the others would wait for ever for one that
    cannot start. And whether it spills nothing, which would make it slow."""
    from triton.runtime.errors import OutOfResources

    try:
        compiled._init_handles()
    except OutOfResources:
        return False
    registers = compiled.n_regs * NUM_WARPS * WARP_SIZE
    spilled = compiled.n_spills * 4  # it counts words
    has_registers = registers <= REGISTERS_PER_BLOCK and spilled <= MOST_SPILLED
    return bool(has_registers and compiled.metadata.shared <= limits.shared)
