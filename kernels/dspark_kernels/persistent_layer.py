"""A decoder layer for the few rows of a decoding step as one launch, whose programs stay.

Everywhere else a layer is eight launches. The sums are the same, to the bit. Nobody has measured
yet which of the two is quicker: DSPARK_PERSISTENT=on asks for this one, where it can.
"""

import os
from collections.abc import Hashable
from functools import cache
from typing import Any, NamedTuple

import torch

from dspark_kernels.backend import IS_INTERPRETED, next_power_of_2, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.dependent_launch import LINE, launch_options
from dspark_kernels.dequantized_linear import kernel_codes
from dspark_kernels.grid_barrier import barrier_of
from dspark_kernels.kv_codes import Cached, cache_arguments
from dspark_kernels.last_arriver import arrival_counters
from dspark_kernels.norm_rope_write import HeadNorms
from dspark_kernels.paged_attention import (
    SPLITS_AT_ONCE,
    num_splits_for,
    sizes_of_a_block,
    warps_of_a_block,
)
from dspark_kernels.paged_cache import PAGE, PagedRows
from dspark_kernels.persistent_layer_kernel import NUM_PHASES, WHOLE, persistent_layer_kernel
from dspark_kernels.quantized_weight import QuantizedWeight
from dspark_kernels.residual_stream import ResidualStream
from dspark_kernels.skinny_linear import DENSE_GROUP, TOUCHED_BYTES, Tiling
from dspark_kernels.skinny_linear_kernels import ROW_TILE

Weight = torch.Tensor | QuantizedWeight
PRODUCTS = ("QKV", "OUTPUT", "GATE_UP", "DOWN")
NUM_WARPS = 4  # of a program, as of attention and products: sums of attention follow from it
NUM_STAGES = 3
MOST_REGISTERS = 255
INTERPRETED_PROGRAMS = 3
_FITS: dict[Hashable, bool] = {}


class LayerWeights(NamedTuple):
    """As dspark.models.decoder.FusedLayer has them, without biases."""

    input_norm: torch.Tensor
    qkv: Weight
    head_norms: HeadNorms | None
    output: Weight
    mlp_norm: torch.Tensor
    gate_up: Weight
    down: Weight


class CachedLayer(NamedTuple):
    """Keys and values of a layer, and where a pass reads and writes them."""

    keys: Cached
    values: Cached
    tables: torch.Tensor
    rows: PagedRows
    rotary: tuple[torch.Tensor, torch.Tensor]
    scale: float


class CardLimits(NamedTuple):
    """Multiprocessors of a card; registers and bytes of shared memory of each."""

    multiprocessors: int
    registers: int
    shared: int


@cache
def card_limits(device: torch.device) -> CardLimits:
    if IS_INTERPRETED:
        return CardLimits(INTERPRETED_PROGRAMS, 1 << 16, 1 << 20)
    card = torch.cuda.get_device_properties(device)
    return CardLimits(
        card.multi_processor_count,
        card.regs_per_multiprocessor,
        card.shared_memory_per_multiprocessor,
    )


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
    """One tile of rows, and weights of one format; attention with as many warps as products."""
    x = stream.total
    if stream.update is not None or not 1 <= len(x) <= ROW_TILE.value or not use_triton(x):
        return False
    matrices = (weights.qkv, weights.output, weights.gate_up, weights.down)
    if len({_format_of(weight) for weight in matrices}) > 1:
        return False
    if any(isinstance(w, QuantizedWeight) and w.order is not None for w in matrices):
        return False
    sizes = sizes_of_a_block(_group(weights, cached), _head_dim(cached), x.element_size())
    if warps_of_a_block(sizes, x.element_size()) != NUM_WARPS:
        return False
    step = _tilings(weights, x.element_size())[0].block_k
    return all(weight.shape[1] % step == 0 for weight in matrices)


def _format_of(weight: Weight) -> Hashable:
    if isinstance(weight, torch.Tensor):
        return weight.dtype
    return weight.kind, weight.group, weight.rows_per_scale, weight.scales.dtype


def _head_dim(cached: CachedLayer) -> int:
    return int(cache_arguments(cached.keys).rows.shape[3])


def _group(weights: LayerWeights, cached: CachedLayer) -> int:
    """Query heads of a key head."""
    _, num_kv_heads, _, head_dim = cache_arguments(cached.keys).rows.shape
    return int(weights.output.shape[1]) // (head_dim * num_kv_heads)


def _tilings(weights: LayerWeights, element: int) -> list[Tiling]:
    """Of the four products, as skinny_linear tiles them."""
    tilings = []
    for weight in (weights.qkv, weights.output, weights.gate_up, weights.down):
        kind, group = "dense", DENSE_GROUP
        if isinstance(weight, QuantizedWeight):
            kind, group = ("int4_least" if weight.leasts is not None else weight.kind), weight.group
        num_outputs = weight.shape[0] // (2 if weight is weights.gate_up else 1)
        tilings.append(Tiling.of(num_outputs, weight.shape[1], kind, group, element))
    return tilings


def product_constants(
    name: str, num_outputs: int, row_bytes: int, tiling: Tiling, num_programs: int
) -> dict[str, int]:
    """Of one of PRODUCTS: its splits; lines of a row's part in a split; and how many of a program's
    items have been fetched when the first one begins, as many as the L2 has room for."""
    part_bytes = -(-row_bytes // tiling.num_splits)
    item_bytes = part_bytes * tiling.block_n * (2 if name == "GATE_UP" else 1)
    num_items = -(-num_outputs // tiling.block_n) * tiling.num_splits
    ahead = min(TOUCHED_BYTES // (item_bytes * num_programs), -(-num_items // num_programs))
    return {
        f"{name}_SPLITS": tiling.num_splits,
        f"{name}_LINES": next_power_of_2(-(-part_bytes // LINE)),
        f"{name}_AHEAD": max(ahead, 1),
    }


def call_of(
    x: torch.Tensor,
    weights: LayerWeights,
    cached: CachedLayer,
    eps: float,
    tap: torch.Tensor | None,
    num_programs: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The kernel's arguments, memory for all that lies between its phases among them, and its
    constants but for PHASE and DEPENDENT."""
    x = x.contiguous()
    num_rows, hidden = x.shape
    matrices = dict(
        zip(PRODUCTS, (weights.qkv, weights.output, weights.gate_up, weights.down), strict=True)
    )
    tilings = dict(zip(PRODUCTS, _tilings(weights, x.element_size()), strict=True))
    key, value, rows = cache_arguments(cached.keys), cache_arguments(cached.values), cached.rows
    num_kv_heads, head_dim = key.rows.shape[1], key.rows.shape[3]
    group, inner = _group(weights, cached), weights.down.shape[1]
    num_heads, num_splits = group * num_kv_heads, num_splits_for(rows.num_pages)
    sizes = sizes_of_a_block(group, head_dim, x.element_size())
    constants: dict[str, Any] = {
        "HIDDEN": hidden,
        "INNER": inner,
        "NORM_BLOCK": next_power_of_2(hidden),
        "BLOCK_N": tilings["QKV"].block_n,
        "BLOCK_K": tilings["QKV"].block_k,
        "CACHE_KIND": key.kind,
        "HEAD_STRIDE": key.head_stride,
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP": group,
        "PAGE": PAGE,
        "CHUNK": SPLITS_AT_ONCE,
        "CAUSAL": rows.causal,
        "HAS_HEAD_NORM": weights.head_norms is not None,
        "HAS_TAP": tap is not None,
        **sizes,
    }
    given: dict[str, Any] = {}
    for name, weight in matrices.items():
        codes, scales, kind, group_of_scale = weight, weight, "dense", DENSE_GROUP
        zeros, rows_per_scale = None, 1
        if isinstance(weight, QuantizedWeight):
            codes, scales, kind, group_of_scale = kernel_codes(weight, x.device)
            zeros = weight.zeros if weight.leasts is None else weight.leasts
            rows_per_scale = weight.rows_per_scale
        given |= {f"{name.lower()}_{part}": tensor for part, tensor in
                  (("codes", codes), ("scales", scales), ("zeros", zeros))}  # fmt: skip
        num_outputs = weight.shape[0] // (2 if name == "GATE_UP" else 1)
        constants |= {"KIND": kind, "WEIGHT_GROUP": group_of_scale}
        constants |= {"ROWS_PER_SCALE": rows_per_scale}
        constants |= product_constants(
            name, num_outputs, codes[0].nbytes, tilings[name], num_programs
        )
    float32 = {"device": x.device, "dtype": torch.float32}
    num_blocks = -(-rows.max_rows // sizes["BLOCK_ROWS"])
    num_counters = rows.num_requests * num_kv_heads * num_blocks
    num_counters *= -(-num_splits // SPLITS_AT_ONCE) + 1
    num_counters = max(
        num_counters, *(w.shape[0] // tilings[n].block_n + 1 for n, w in matrices.items())
    )
    num_parts = max(tilings[n].num_splits * num_rows * w.shape[0] for n, w in matrices.items())
    stats = torch.empty(2, num_rows, num_heads, num_splits, **float32)
    cos, sin = cached.rotary
    norms = weights.head_norms
    return {
        "x": x,
        "middle": torch.empty_like(x),
        "out": torch.empty_like(x),
        "tap": tap,
        "normed": x.new_empty(num_programs, num_rows, hidden),
        "qkv": x.new_empty(num_rows, num_heads + 2 * num_kv_heads, head_dim),
        "query": x.new_empty(num_rows, num_heads, head_dim),
        "attended": x.new_empty(num_rows, num_heads * head_dim),
        "inner": x.new_empty(num_rows, inner),
        "parts": torch.empty(num_parts, **float32),
        "partial": torch.empty(num_rows, num_heads, num_splits, head_dim, **float32),
        "maxima": stats[0],
        "sums": stats[1],
        "counters": arrival_counters(x.device, num_counters),
        "barrier": barrier_of(x.device),
        "input_norm": weights.input_norm,
        "mlp_norm": weights.mlp_norm,
        "query_norm": None if norms is None else norms.query,
        "key_norm": None if norms is None else norms.key,
        **given,
        "keys": key.rows,
        "values": value.rows,
        "key_scales": key.scales,
        "value_scales": value.scales,
        "tables": cached.tables,
        "slots": rows.slots,
        "starts": rows.starts,
        "row_starts": rows.row_starts,
        "cos": cos,
        "sin": sin,
        "eps": eps,
        "head_eps": 0.0 if norms is None else norms.eps,
        "scale": cached.scale,
        "num_rows": num_rows,
        "num_requests": rows.num_requests,
        "max_rows": rows.max_rows,
        "num_splits": num_splits,
        "tap_stride": 0 if tap is None else tap.stride(0),
        "table_stride": cached.tables.stride(0),
        "page_stride": key.page_stride,
    }, constants


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
    options |= {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES, "maxnreg": MOST_REGISTERS}
    given = {**arguments, **constants, "PHASE": WHOLE.value, **options}
    key = (device, tuple(constants.items()))
    if key not in _FITS:
        _FITS[key] = fits(persistent_layer_kernel.warmup(grid=grid, **given), limits)
    if _FITS[key]:
        persistent_layer_kernel[grid](**given)
    return _FITS[key]


def fits(compiled: Any, limits: CardLimits) -> bool:
    """Whether every multiprocessor takes one program: the others would wait for ever for one that
    cannot start."""
    from triton.runtime.errors import OutOfResources

    try:
        compiled._init_handles()
    except OutOfResources:
        return False
    registers = compiled.n_regs * NUM_WARPS * 32
    return registers <= limits.registers and compiled.metadata.shared <= limits.shared


TYPES = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32",
    torch.int8: "*i8", torch.uint8: "*u8",
}  # fmt: skip


def builds() -> list[KernelBuild]:
    """Of Qwen3-4B and 8B, for one request on a card of 132 multiprocessors."""
    return [
        _build_of("4B bf16", 2560, 9728, None),
        _build_of("8B bf16", 4096, 12288, None),
        _build_of("4B int4 128", 2560, 9728, 128),
    ]


def _build_of(name: str, hidden: int, inner: int, group: int | None) -> KernelBuild:
    """By the arguments of a call, whose tensors have no memory."""
    new = torch.empty(0, device="meta", dtype=torch.bfloat16)

    def weight(outputs: int, columns: int) -> Weight:
        if group is None:
            return new.new_empty(outputs, columns)
        codes, groups = new.new_empty(outputs, columns // 2).byte(), (outputs, columns // group)
        scales, zeros = new.new_empty(groups), new.new_empty(groups).byte()
        return QuantizedWeight("int4", codes, scales, group, zeros=zeros)

    weights = LayerWeights(
        new.new_empty(hidden), weight(48 * 128, hidden),
        HeadNorms(new.new_empty(128), new.new_empty(128), 1e-6), weight(hidden, 32 * 128),
        new.new_empty(hidden), weight(2 * inner, hidden), weight(hidden, inner),
    )  # fmt: skip
    cache = new.new_empty(2, 4, 8, PAGE, 128)
    tables = torch.empty(2, 4, device="meta", dtype=torch.int32)
    rows = PagedRows(*(tables[0].clone() for _ in range(3)), 1, 4, causal=True)
    cached = CachedLayer(
        cache[0], cache[1], tables, rows, (new.new_empty(1024, 128),) * 2, 128**-0.5
    )
    arguments, constants = call_of(new.new_empty(1, hidden), weights, cached, 1e-6, None, 132)
    signature, absent = {}, {}
    for argument, value in arguments.items():
        if value is None:
            absent[argument] = None
        elif isinstance(value, torch.Tensor):
            signature[argument] = TYPES[value.dtype]
        else:
            signature[argument] = "i32" if isinstance(value, int) else "fp32"
    return KernelBuild(
        f"persistent layer {name}",
        persistent_layer_kernel,
        signature,
        {**absent, **constants, "PHASE": WHOLE.value, "DEPENDENT": True},
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
        max_registers=MOST_REGISTERS,
    )
