"""What the kernel of persistent_layer.py is given: weights, memory between phases, constants."""

from typing import Any, NamedTuple

import torch

from dspark_kernels.backend import next_power_of_2
from dspark_kernels.builds import KernelBuild
from dspark_kernels.dependent_launch import LINE, MIN_CAPABILITY
from dspark_kernels.dequantized_linear import kernel_codes
from dspark_kernels.grid_barrier import barrier_of
from dspark_kernels.kv_codes import Cached, cache_arguments
from dspark_kernels.last_arriver import arrival_counters
from dspark_kernels.norm_rope_write import HeadNorms
from dspark_kernels.paged_attention import SPLITS_AT_ONCE, num_splits_for, sizes_of_a_block
from dspark_kernels.paged_cache import PAGE, PagedRows
from dspark_kernels.persistent_layer_kernel import WHOLE, persistent_layer_kernel
from dspark_kernels.quantized_weight import QuantizedWeight
from dspark_kernels.skinny_linear import DENSE_GROUP, TOUCHED_BYTES, Tiling

Weight = torch.Tensor | QuantizedWeight
# of a program, as of attention and products: the order of attention's sums follows from them
NUM_WARPS = 4
LAUNCH = {"num_warps": NUM_WARPS, "num_stages": 3, "maxnreg": 255}


class LayerWeights(NamedTuple):
    """As dspark.models.decoder.FusedLayer has them, without biases."""

    input_norm: torch.Tensor
    qkv: Weight
    head_norms: HeadNorms | None
    output: Weight
    mlp_norm: torch.Tensor
    gate_up: Weight
    down: Weight

    def matrices(self) -> dict[str, Weight]:
        """By the names that their constants have; of GATE_UP, half of the rows are outputs."""
        return {
            "QKV": self.qkv,
            "OUTPUT": self.output,
            "GATE_UP": self.gate_up,
            "DOWN": self.down,
        }


class CachedLayer(NamedTuple):
    """Keys and values of a layer, and where a pass reads and writes them."""

    keys: Cached
    values: Cached
    tables: torch.Tensor
    rows: PagedRows
    rotary: tuple[torch.Tensor, torch.Tensor]
    scale: float


def heads_of(weights: LayerWeights, cached: CachedLayer) -> tuple[int, int, int]:
    """Query heads of a key head, key heads, and their width."""
    _, num_kv_heads, _, head_dim = cache_arguments(cached.keys).rows.shape
    return int(weights.output.shape[1]) // (head_dim * num_kv_heads), num_kv_heads, head_dim


def outputs_of(name: str, weight: Weight) -> int:
    return int(weight.shape[0]) // (2 if name == "GATE_UP" else 1)


def tilings_of(weights: LayerWeights, element: int) -> dict[str, Tiling]:
    """As skinny_linear tiles the products."""
    tilings = {}
    for name, weight in weights.matrices().items():
        kind, group = "dense", DENSE_GROUP
        if isinstance(weight, QuantizedWeight):
            kind, group = ("int4_least" if weight.leasts is not None else weight.kind), weight.group
        shape = (outputs_of(name, weight), weight.shape[1])
        tilings[name] = Tiling.of(*shape, kind, group, element)
    return tilings


def product_constants(
    name: str, num_outputs: int, row_bytes: int, tiling: Tiling, num_programs: int
) -> dict[str, int]:
    """Of a matrix: its splits; how many of a program's items have been fetched when the first one
    begins, as many as half of the L2 has room for, and how many lines of each of their rows."""
    rows = tiling.block_n * (2 if name == "GATE_UP" else 1) * num_programs
    lines = -(-row_bytes // (tiling.num_splits * LINE))
    most_lines = max(TOUCHED_BYTES // (rows * LINE), 1)
    num_items = -(-num_outputs // tiling.block_n) * tiling.num_splits
    if lines > most_lines:
        touched, ahead = 1 << (most_lines.bit_length() - 1), 1
    else:
        touched = next_power_of_2(lines)
        ahead = min(most_lines // lines, -(-num_items // num_programs))
    return {
        f"{name}_SPLITS": tiling.num_splits,
        f"{name}_LINES": touched,
        f"{name}_AHEAD": ahead,
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
    matrices, tilings = weights.matrices(), tilings_of(weights, x.element_size())
    key, value, rows = cache_arguments(cached.keys), cache_arguments(cached.values), cached.rows
    group, num_kv_heads, head_dim = heads_of(weights, cached)
    inner = weights.down.shape[1]
    num_heads, num_splits = group * num_kv_heads, num_splits_for(rows.num_pages)
    sizes = sizes_of_a_block(group, head_dim, x.element_size())
    constants: dict[str, Any] = {
        "HIDDEN": hidden,
        "INNER": inner,
        "NORM_BLOCK": next_power_of_2(hidden),
        "BLOCK_N": tilings["QKV"].block_n,
        "BLOCK_K": tilings["QKV"].block_k,
        "EVEN_K": all(w.shape[1] % tilings["QKV"].block_k == 0 for w in matrices.values()),
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
        zeros, rows_per_scale = None, 1
        if isinstance(weight, QuantizedWeight):
            codes, scales, kind, group_of_scale = kernel_codes(weight, x.device)
            zeros = weight.zeros if weight.leasts is None else weight.leasts
            rows_per_scale = weight.rows_per_scale
        else:
            codes, scales, kind, group_of_scale = weight, weight, "dense", DENSE_GROUP
        given |= {f"{name.lower()}_{part}": tensor for part, tensor in
                  (("codes", codes), ("scales", scales), ("zeros", zeros))}  # fmt: skip
        constants |= {"KIND": kind, "WEIGHT_GROUP": group_of_scale}
        constants |= {"ROWS_PER_SCALE": rows_per_scale}
        constants |= product_constants(
            name, outputs_of(name, weight), codes[0].nbytes, tilings[name], num_programs
        )
    num_blocks = -(-rows.max_rows // sizes["BLOCK_ROWS"])
    num_counters = rows.num_requests * num_kv_heads * num_blocks
    num_counters *= -(-num_splits // SPLITS_AT_ONCE) + 1
    num_counters = max(
        num_counters, *(w.shape[0] // tilings[n].block_n + 1 for n, w in matrices.items())
    )
    num_parts = max(tilings[n].num_splits * num_rows * w.shape[0] for n, w in matrices.items())
    stats = x.new_empty(2, num_rows, num_heads, num_splits, dtype=torch.float32)
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
        "parts": x.new_empty(num_parts, dtype=torch.float32),
        "partial": x.new_empty(num_rows, num_heads, num_splits, head_dim, dtype=torch.float32),
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


TYPES = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32",
    torch.int8: "*i8", torch.uint8: "*u8",
}  # fmt: skip


def builds() -> list[KernelBuild]:
    """Of Qwen3-4B, for one request on a card of 132 multiprocessors."""
    return [
        _build_of("4B bf16", 2560, 9728, None),
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
    rows = PagedRows(tables[0], tables[0], tables[0], max_rows=1, num_pages=4, causal=True)
    cached = CachedLayer(
        cache[0], cache[1], tables, rows, (new.new_empty(1024, 128),) * 2, 128**-0.5
    )
    arguments, constants = call_of(new.new_empty(1, hidden), weights, cached, 1e-6, None, 132)
    signature: dict[str, str] = {}
    absent: dict[str, None] = {}
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
        num_warps=LAUNCH["num_warps"],
        num_stages=LAUNCH["num_stages"],
        max_registers=LAUNCH["maxnreg"],
        min_capability=MIN_CAPABILITY,
        has_substitute=True,
    )
