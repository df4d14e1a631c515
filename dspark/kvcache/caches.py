"""KV caches of a model's layers, and the attention of a pass's rows to them.

Two kinds with one interface: pooled, fastest for torch on a CPU, and paged, for the Triton kernels
and captured graphs.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

from dspark.config import KVFormat
from dspark.errors import InputError
from dspark.kvcache.page_pool import PagedPool, page_rows
from dspark.kvcache.pooled_attention import PooledAttention
from dspark.kvcache.row_pool import KVPool, KVSlot, RowPlan, SlotPool
from dspark_kernels.backend import choose_backend
from dspark_kernels.kv_codes import Cached, CodeKind
from dspark_kernels.norm import rms_norm
from dspark_kernels.norm_rope_write import HeadNorms, norm_rope_write
from dspark_kernels.paged_attention import paged_attention
from dspark_kernels.paged_cache import PAGE, PagedRows, gather_request
from dspark_kernels.persistent_layer_call import CachedLayer
from dspark_kernels.rope import RotaryTable, apply_rope

MAX_VERIFY_ROWS = 64  # of one request; more rows are a chunk of a prompt


class HeadShape(NamedTuple):
    """Sizes of the attention of every layer; `window`: how many positions a row of pages sees back,
    itself included (0: all)."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int = 0


class CachePass(Protocol):
    """The new rows of one pass, for every layer."""

    def __call__(self, layer: int, heads: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
        """heads [N, heads + 2 kv_heads, D] as projected -> attended [N, heads * D]; stores the keys
        and values."""
        ...

    def write(self, layer: int, heads: torch.Tensor, norms: HeadNorms | None) -> None:
        """Stores keys and values only: heads [N, 2 kv_heads, D]."""
        ...

    def cached(self, layer: int) -> CachedLayer | None:
        """What a kernel of a whole layer reads and writes; None where there is none."""
        ...


class Cache(Protocol):
    @property
    def slots(self) -> SlotPool: ...

    def open(self) -> KVSlot: ...

    def at(self, slots: Sequence[KVSlot], sizes: Sequence[int], *, causal: bool) -> CachePass:
        """A pass over the next rows of these requests."""
        ...


def make_cache(
    shape: HeadShape,
    rotary: RotaryTable,
    device: torch.device,
    dtype: torch.dtype,
    kv: KVFormat = "auto",
) -> "PooledCache | PagedCache":
    """Paged if Triton runs. Raises InputError for codes that are not on pages, or in float32, where
    a GPU's registers do not hold a tile of them."""
    if kv != "auto" and device.type == "cuda" and dtype == torch.float32:
        raise InputError(
            f"keys and values in {kv} need bfloat16 or float16", "Leave --dtype at auto."
        )
    if choose_backend(device).name == "triton":
        return PagedCache(shape, rotary, device, dtype, kv)
    check_numbers(kv)
    return PooledCache(shape, rotary, device, dtype)


def check_numbers(kv: KVFormat) -> None:
    """Raises InputError where keys and values can only be numbers."""
    if kv != "auto":
        raise InputError(
            f"keys and values in {kv} need a dense target and its kernels on a GPU",
            "Leave --kv at auto.",
        )


class PooledCache:
    """One stretch of rows for each request, in plain torch."""

    def __init__(
        self, shape: HeadShape, rotary: RotaryTable, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shape, self._rotary, self._device = shape, rotary, device
        sizes = (shape.num_layers, shape.num_kv_heads, shape.head_dim)
        self._pool = KVPool(*sizes, device, dtype)

    @property
    def slots(self) -> KVPool:
        return self._pool

    def open(self) -> KVSlot:
        return self._pool.open()

    def at(self, slots: Sequence[KVSlot], sizes: Sequence[int], *, causal: bool) -> "PooledPass":
        plan = RowPlan(slots, sizes, causal=causal)
        attend = PooledAttention(self._pool, plan, self.shape.scale)
        rotary = self._rotary.at(plan.positions.to(self._device), plan.end - 1)
        return PooledPass(attend, rotary, self.shape)


class PooledPass:
    def __init__(
        self, attend: PooledAttention, rotary: tuple[torch.Tensor, torch.Tensor], shape: HeadShape
    ) -> None:
        self._attend, self._rotary, self._shape = attend, rotary, shape

    def __call__(self, layer: int, heads: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
        num_heads, num_kv_heads = self._shape.num_heads, self._shape.num_kv_heads
        value = heads[:, num_heads + num_kv_heads :]
        if norms is None:
            rotated = apply_rope(heads[:, : num_heads + num_kv_heads], *self._rotary)
            return self._attend(layer, rotated[:, :num_heads], rotated[:, num_heads:], value)
        query = rms_norm(heads[:, :num_heads], norms.query, norms.eps)
        key = rms_norm(heads[:, num_heads : num_heads + num_kv_heads], norms.key, norms.eps)
        return self._attend(
            layer, apply_rope(query, *self._rotary), apply_rope(key, *self._rotary), value
        )

    def write(self, layer: int, heads: torch.Tensor, norms: HeadNorms | None) -> None:
        """As CachePass.write."""
        key, value = heads.split(self._shape.num_kv_heads, dim=1)
        if norms is not None:
            key = rms_norm(key, norms.key, norms.eps)
        self._attend.write(layer, apply_rope(key, *self._rotary), value)

    def cached(self, layer: int) -> None:
        return None


class PagedCache:
    """Pages for all requests. It grows until `fix` sets its final size."""

    def __init__(
        self,
        shape: HeadShape,
        rotary: RotaryTable,
        device: torch.device,
        dtype: torch.dtype,
        kv: KVFormat = "auto",
    ) -> None:
        self.shape, self.rotary = shape, rotary
        self.device, self.dtype, self.kv = device, dtype, kv
        self._codes: CodeKind | None = None if kv == "auto" else kv
        sizes = (shape.num_layers, shape.num_kv_heads, shape.head_dim)
        self.pool = PagedPool(*sizes, device, dtype, codes=self._codes)

    @torch.inference_mode(False)  # requests are opened outside inference mode too
    def fix(self, num_pages: int, num_slots: int, max_length: int) -> None:
        """No request may be open. From here on addresses are fixed, as captured graphs need."""
        sizes = (self.shape.num_layers, self.shape.num_kv_heads, self.shape.head_dim)
        del self.pool  # before allocating the new one, which may take all free memory
        self.pool = PagedPool(
            *sizes,
            self.device,
            self.dtype,
            codes=self._codes,
            num_pages=num_pages,
            num_slots=num_slots,
            max_length=max_length,
            grows=False,
        )
        self.rotary.upto(self.pool.tables.shape[1] * PAGE - 1)
        # for idle lanes: a request of any length whose positions all map to one page
        self.scratch = self.pool.open()
        self.pool.reserve(self.scratch.index, 1)
        self.pool.tables[self.scratch.index] = self.pool.tables[self.scratch.index, 0].clone()

    @property
    def slots(self) -> PagedPool:
        return self.pool

    def open(self) -> KVSlot:
        return self.pool.open()

    def at(self, slots: Sequence[KVSlot], sizes: Sequence[int], *, causal: bool) -> "PagedPass":
        plan = RowPlan(slots, sizes, causal=causal)
        self.pool.reserve_rows(plan)
        chunk = plan if causal and max(plan.sizes) > MAX_VERIFY_ROWS else None
        if chunk is not None and plan.num_requests > 1:
            raise ValueError("the chunk of a prompt is a separate pass")
        return PagedPass(self, page_rows(plan, self.device), plan.end, chunk)

    def over(self, rows: PagedRows) -> "PagedPass":
        """A pass whose plan is on the device, over pages reserved for it."""
        return PagedPass(self, rows, self.pool.tables.shape[1] * PAGE, None)


class PagedPass:
    def __init__(self, cache: PagedCache, rows: PagedRows, end: int, chunk: RowPlan | None) -> None:
        """`chunk`: the single request, if the rows are a chunk of its prompt."""
        self._pool, self._shape, self._rows = cache.pool, cache.shape, rows
        self._rotary = cache.rotary.upto(end - 1)
        self._chunk = chunk

    def __call__(self, layer: int, heads: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
        query = self._write(layer, heads, norms)
        keys, values = self._pool.layer(layer)
        if self._chunk is not None:
            return self._attend_chunk(self._chunk, query, keys, values)
        given = (query, keys, values, self._pool.tables, self._rows, self._shape.scale)
        return paged_attention(*given, window=self._shape.window)

    def write(self, layer: int, heads: torch.Tensor, norms: HeadNorms | None) -> None:
        """As CachePass.write."""
        self._write(layer, heads, norms)

    def cached(self, layer: int) -> CachedLayer | None:
        """As CachePass.cached."""
        if self._chunk is not None or self._shape.window:
            return None
        return CachedLayer(
            *self._pool.layer(layer), self._pool.tables, self._rows, self._rotary,
            self._shape.scale,
        )  # fmt: skip

    def _write(self, layer: int, heads: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
        keys, values = self._pool.layer(layer)
        return norm_rope_write(
            heads, keys, values, self._pool.tables, self._rows, self._rotary, norms
        )

    def _attend_chunk(
        self, plan: RowPlan, query: torch.Tensor, keys: Cached, values: Cached
    ) -> torch.Tensor:
        """PyTorch's attention over one request's gathered pages."""
        from torch.nn.attention.bias import causal_lower_right  # brings PyTorch's compiler

        table = self._pool.tables[plan.slots[0]]
        all_keys, all_values = (
            gather_request(cached, table, plan.end).to(query.dtype) for cached in (keys, values)
        )
        sharing = self._shape.num_heads // self._shape.num_kv_heads
        if sharing > 1 and query.dtype == torch.float32:
            # or a GPU, with no kernel for shared heads in float32, would make the mask and scores
            all_keys, all_values = (
                each.repeat_interleave(sharing, dim=0) for each in (all_keys, all_values)
            )
            sharing = 1
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1).unsqueeze(0),
            all_keys.unsqueeze(0),
            all_values.unsqueeze(0),
            attn_mask=causal_lower_right(plan.sizes[0], plan.end),
            scale=self._shape.scale,
            enable_gqa=sharing > 1,
        )
        return out[0].transpose(0, 1).flatten(1)
