"""Attention of a pass's new rows over the pool of cached keys and values.

A row of a causal pass is bit-identical whatever else is in the batch: masked keys contribute
exactly zero, and rows and keys are padded to counts at which torch sums in one order.
"""

import torch
import torch.nn.functional as F

from dspark.kvcache.row_pool import BatchedRows, KVPool, RowPlan

ROW_TILE = 8  # matrix products of fewer rows sum in another order
KEY_BLOCK = 512  # keys per block of torch's CPU attention
KEY_TILE = 16  # lanes of the widest CPU vector; torch sums the remainder in another order
MAX_WHOLE_SUM = 192  # products over more keys than this, and fewer than a block, are split


def num_keys_read(end: int) -> int:
    """Number of keys to read for `end` visible ones, masked padding included."""
    blocks, rest = divmod(end, KEY_BLOCK)
    filled = -(-rest // KEY_TILE) * KEY_TILE if rest <= MAX_WHOLE_SUM else KEY_BLOCK
    return blocks * KEY_BLOCK + filled


class PooledAttention:
    """Writes the new rows of a pass into the pool and attends over each request's own rows."""

    def __init__(self, pool: KVPool, plan: RowPlan, scale: float) -> None:
        self._end = num_keys_read(plan.end) if plan.causal else plan.end
        pool.reserve(self._end)
        self._pool, self._plan, self._scale = pool, plan, scale
        self._rows = BatchedRows(plan, self._end) if plan.num_requests > 1 else None
        self._mask: torch.Tensor | None = None

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """keys, values [N, kv_heads, D] of all rows of the pass."""
        cached_keys, cached_values = self._pool.layer(layer)
        if self._rows is None:
            slot, start, end = self._plan.slots[0], self._plan.starts[0], self._plan.end
            cached_keys[slot, :, start:end] = keys.transpose(0, 1)
            cached_values[slot, :, start:end] = values.transpose(0, 1)
            return
        where = (self._rows.slot_of_row, slice(None), self._plan.positions)
        cached_keys[where], cached_values[where] = keys, values

    def __call__(
        self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """query [N, heads, D], keys and values [N, kv_heads, D] -> [N, heads * D]."""
        self.write(layer, keys, values)
        cached_keys, cached_values = self._pool.layer(layer)
        end = self._end
        if self._rows is None:
            slot = self._plan.slots[0]
            return self._attend(
                query.unsqueeze(0),
                cached_keys[slot : slot + 1, :, :end],
                cached_values[slot : slot + 1, :, :end],
            )[0].flatten(1)
        return self._attend_batched(query, cached_keys[:, :, :end], cached_values[:, :, :end])

    def _attend_batched(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        rows = self._rows
        assert rows is not None
        padded = query.new_zeros(rows.num_slots, rows.num_rows, *query.shape[1:])
        padded[rows.padded_slot, rows.row_in_block] = query
        span = slice(rows.first_slot, rows.first_slot + rows.num_slots)
        out = self._attend(padded, keys[span], values[span])
        return out[rows.padded_slot, rows.row_in_block].flatten(1)

    def _attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """query [S, n, heads, D], keys and values [S, kv_heads, L, D] -> [S, n, heads, D].

        Query heads of one group are folded into rows, so that keys are read once per group.
        """
        slots, num_rows, num_heads, head_dim = query.shape
        num_kv_heads = keys.shape[1]
        group = num_heads // num_kv_heads
        folded = query.view(slots, num_rows, num_kv_heads, group, head_dim).permute(0, 2, 3, 1, 4)
        folded = folded.reshape(slots, num_kv_heads, group * num_rows, head_dim)
        mask = self._folded_mask(group, query)
        if mask is not None:
            folded = F.pad(folded, (0, 0, 0, mask.shape[2] - folded.shape[2]))
        out: torch.Tensor = F.scaled_dot_product_attention(
            folded, keys, values, attn_mask=mask, scale=self._scale
        )
        out = out[:, :, : group * num_rows].unflatten(2, (group, num_rows)).permute(0, 3, 1, 2, 4)
        return out.reshape(slots, num_rows, num_heads, head_dim)

    def _folded_mask(self, group: int, query: torch.Tensor) -> torch.Tensor | None:
        """Added to the scores; made at the first layer; None if every row sees every key."""
        if self._plan.is_whole:
            return None
        if self._mask is None:
            visible = (self._rows or BatchedRows(self._plan, self._end)).mask
            visible = visible.repeat(1, group, 1).unsqueeze(1)
            hidden = query.new_zeros(visible.shape)
            hidden.masked_fill_(~visible.to(query.device), float("-inf"))
            self._mask = F.pad(hidden, (0, 0, 0, -visible.shape[2] % ROW_TILE))
        return self._mask
