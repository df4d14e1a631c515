"""Compressors of DeepSeek-V4: each window of positions becomes one entry, a softmax-weighted sum.

Windows of CSA overlap: one channel half of the window before takes part. An entry is computed when
its window closes, from raw rows in a ring, so a window that closes again is computed again.
"""

import torch

from dspark.checkpoints.deepseek_v4_target import Block
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.deepseek_v4.cache import RequestCaches, Stretch, first_raw
from dspark.models.deepseek_v4.rotation import RotationTable, rotated
from dspark.models.deepseek_v4.row_wise import norm
from dspark_kernels.cpu.float_matrix import multiply_floats


class Compressor:
    """One of a layer's: of its keys, or of the indexer's."""

    def __init__(
        self,
        config: DeepseekV4TargetConfig,
        layer: int,
        name: str,
        block: Block,
        rotation: RotationTable,
    ) -> None:
        self._config, self._layer, self._name = config, layer, name
        self._ratio, self._overlaps = config.ratios[layer], config.selects[layer]
        prefix = f"attn.{name}"
        self._kv = block.matrices[f"{prefix}.wkv.weight"]
        self._gate = block.matrices[f"{prefix}.wgate.weight"]
        self._ape, self._norm = (
            block.tensors[f"{prefix}.ape"],
            block.tensors[f"{prefix}.norm.weight"],
        )
        self._rotation = rotation

    def rows(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """x [N, H] -> raw rows [N, 2, columns]: values and their gates."""
        gate = multiply_floats(x, self._gate) + self._ape[positions % self._ratio]
        return torch.stack([multiply_floats(x, self._kv), gate], dim=1)

    def store(self, caches: RequestCaches, stretch: Stretch, rows: torch.Tensor) -> None:
        """The rows of one request, and the entries whose windows they close."""
        ring = caches.rings(stretch.slot).of(self._layer, self._name)
        first = first_raw(self._config, self._layer, stretch.start)
        before = torch.arange(first, stretch.start) % len(ring)
        known = torch.cat([ring[before], rows])
        closing = torch.arange(stretch.start // self._ratio, stretch.end // self._ratio)
        if len(closing):
            entries = torch.stack([self._entry(known, first, w) for w in closing.tolist()])
            turn = self._rotation.at(closing * self._ratio)
            entries = rotated(norm(entries, self._norm, self._config.rms_norm_eps), turn)
            place = caches.find(stretch.slot, self._layer, closing)
            caches.entries(self._layer, self._name)[place] = entries
        kept = rows[-len(ring) :]
        ring[torch.arange(stretch.end - len(kept), stretch.end) % len(ring)] = kept

    def _entry(self, known: torch.Tensor, first: int, window: int) -> torch.Tensor:
        """[D] before its norm; `known` are the raw rows from position `first` on."""
        begin, ratio = window * self._ratio - first, self._ratio
        own = known[begin : begin + ratio]
        if self._overlaps:
            width = own.shape[2] // 2
            own = own[:, :, width:]
            if window:
                own = torch.cat([known[begin - ratio : begin, :, :width], own])
        values, gates = own.unbind(1)
        weighed: torch.Tensor = (gates.contiguous().softmax(0) * values).sum(0)
        return weighed
