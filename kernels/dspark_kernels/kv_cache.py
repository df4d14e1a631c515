"""Keys and values of one request, all layers in one buffer that grows by doubling."""

import torch


class KVCache:
    """Rows beyond `length` are scratch: written by a pass, kept only once committed."""

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.length = 0
        self._capacity = 0
        self._shape = (2, num_layers, num_kv_heads, head_dim)
        self._buffer = torch.empty(0, device=device, dtype=dtype)

    def reserve(self, num_rows: int) -> None:
        """Make room for rows up to length + num_rows."""
        needed = self.length + num_rows
        if needed <= self._capacity:
            return
        capacity = max(256, 2 * self._capacity, needed)
        two, layers, heads, head_dim = self._shape
        grown = self._buffer.new_empty(two, layers, heads, capacity, head_dim)
        if self.length:
            grown[..., : self.length, :] = self._buffer[..., : self.length, :]
        self._buffer, self._capacity = grown, capacity

    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """keys, values [N, kv_heads, D] go behind the committed rows; returns all rows so far,
        each [kv_heads, length + N, D]."""
        end = self.length + keys.shape[0]
        both = self._buffer[:, layer]
        both[0, :, self.length : end] = keys.transpose(0, 1)
        both[1, :, self.length : end] = values.transpose(0, 1)
        return both[0, :, :end], both[1, :, :end]
