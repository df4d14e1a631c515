"""Attention of a DeepSeek-V4 target: all heads share keys that are also values; a row sees its
window and, behind it, compressed entries.

Every row is computed on its own, in shapes that follow from its position, so that its bits do not
depend on the rows beside it.
"""

from collections.abc import Sequence

import torch

from dspark.checkpoints.deepseek_v4_cache_layout import compressors
from dspark.checkpoints.deepseek_v4_target import Block
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.deepseek_v4.cache import RequestCaches, Stretch
from dspark.models.deepseek_v4.compressor import Compressor
from dspark.models.deepseek_v4.indexer import Indexer
from dspark.models.deepseek_v4.rotation import RotationTable, rotated
from dspark.models.deepseek_v4.row_wise import norm, unit
from dspark_kernels.cpu.float_matrix import multiply_floats


class Attention:
    def __init__(
        self, config: DeepseekV4TargetConfig, layer: int, block: Block, rotation: RotationTable
    ) -> None:
        self._config, self._layer, self._rotation = config, layer, rotation
        self._matrices, self._tensors = block.matrices, block.tensors
        self._compressors = {
            name: Compressor(config, layer, name, block, rotation)
            for name in compressors(config, layer)
        }
        self._indexer = Indexer(config, block) if config.selects[layer] else None
        outputs = block.matrices["attn.wo_a.weight"]
        rank = config.output_rank
        self._groups = [
            outputs.rows(group * rank, (group + 1) * rank) for group in range(config.output_groups)
        ]

    def __call__(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        caches: RequestCaches,
        stretches: Sequence[Stretch],
    ) -> torch.Tensor:
        """x [N, H] of the rows of `stretches` -> [N, H]; stores their keys."""
        config, eps = self._config, self._config.rms_norm_eps
        turn = self._rotation.at(positions)
        low = norm(self._times(x, "wq_a"), self._tensors["attn.q_norm.weight"], eps)
        query = self._times(low, "wq_b").unflatten(1, (config.num_heads, -1))
        query = rotated(unit(query, eps), turn)
        keys = norm(self._times(x, "wkv"), self._tensors["attn.kv_norm.weight"], eps)
        keys = rotated(keys, turn)
        raw = {name: each.rows(x, positions) for name, each in self._compressors.items()}
        longest = max(stretch.end for stretch in stretches)
        wanted = None
        if self._indexer is not None and longest // config.ratios[self._layer] > config.index_top:
            wanted = self._indexer.queries(x, low, turn)
        attended = torch.empty_like(query)
        for stretch in stretches:
            rows = slice(stretch.first, stretch.first + stretch.end - stretch.start)
            for name, each in self._compressors.items():
                each.store(caches, stretch, raw[name][rows])
            recent = self._recent(caches, stretch, keys[rows])
            for row in range(rows.start, rows.stop):
                position = stretch.start + row - rows.start
                seen = [recent[max(0, position - config.window + 1) - stretch.end :]]
                seen[0] = seen[0][: min(position + 1, config.window)]
                chosen = None if wanted is None else (wanted[0][row], wanted[1][row])
                seen += self._entries(caches, stretch, position, chosen)
                attended[row] = self._attend(query[row], torch.cat(seen))
        attended = rotated(attended, turn.back()).flatten(1).unflatten(1, (len(self._groups), -1))
        outputs = [multiply_floats(attended[:, g], each) for g, each in enumerate(self._groups)]
        return self._times(torch.cat(outputs, dim=1), "wo_b")

    def _recent(self, caches: RequestCaches, stretch: Stretch, keys: torch.Tensor) -> torch.Tensor:
        """The window before a stretch and its own keys [n, D], up to its end; stores them."""
        ring = caches.rings(stretch.slot).of(self._layer)
        first = max(0, stretch.start - self._config.window + 1)
        recent = torch.cat([ring[torch.arange(first, stretch.start) % len(ring)], keys])
        kept = keys[-len(ring) :]
        ring[torch.arange(stretch.end - len(kept), stretch.end) % len(ring)] = kept
        return recent

    def _entries(
        self,
        caches: RequestCaches,
        stretch: Stretch,
        position: int,
        wanted: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> list[torch.Tensor]:
        """The compressed entries [n, D] that a row at `position` attends to, if any."""
        ratio = self._config.ratios[self._layer]
        count = (position + 1) // ratio if ratio else 0
        if not count:
            return []
        chosen = torch.arange(count)
        place = caches.find(stretch.slot, self._layer, chosen)
        if self._indexer is not None and wanted is not None and count > self._config.index_top:
            known = caches.entries(self._layer, "indexer.compressor")[place]
            chosen = self._indexer.best(*wanted, known)
            place = caches.find(stretch.slot, self._layer, chosen)
        return [caches.entries(self._layer, "compressor")[place]]

    def _attend(self, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """query [heads, D], keys [n, D] -> [heads, D]; a head's sink takes part of the whole."""
        scores = (query @ keys.t()) * self._config.head_dim**-0.5
        sinks = self._tensors["attn.attn_sink"].unsqueeze(1)
        shares = torch.cat([scores, sinks], dim=1).softmax(1)[:, :-1]
        out: torch.Tensor = shares @ keys
        return out

    def _times(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return multiply_floats(x, self._matrices[f"attn.{name}.weight"])
