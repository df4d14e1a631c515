"""Our own forward for Llama-shaped models: fused weights, free taps, many requests per pass."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from dspark.checkpoints.quantized_targets import Weights
from dspark.config import KVFormat
from dspark.errors import CheckpointError
from dspark.kvcache.caches import CachePass, PagedCache, make_cache
from dspark.kvcache.row_pool import KVSlot, SlotPool
from dspark.models.decoder import Decoder
from dspark.models.placement import ON_DEVICE, Placement
from dspark.targets.base import Pass, TargetSpec
from dspark.targets.dense_shape import DenseShape
from dspark.targets.dense_weights import LayerWeights, take_tables
from dspark.targets.pool_slots import PoolSlots
from dspark_kernels import EmbeddedBlocks, RotaryTable, SkinnyLinear
from dspark_kernels.skinny_linear import MAX_SKINNY_ROWS


class DenseTarget(PoolSlots):
    """A target whose requests share one pool; rollback is leaving rows uncommitted."""

    def __init__(
        self,
        shape: DenseShape,
        tensors: Weights,
        rotary: RotaryTable,
        *,
        is_tied: bool,
        context_limit: int,
        tap_layers: tuple[int, ...] = (),
        stop_token_ids: frozenset[int] = frozenset(),
        prepack: bool = True,
        placement: Placement = ON_DEVICE,
        kv: KVFormat = "auto",
    ) -> None:
        """`tensors` under transformers' names; consumed, so that nothing is held twice. `is_tied`:
        one table stands for the embedding and the output head, unless two that differ are there.
        """
        self.tap_layers = tap_layers
        try:
            self._take_weights(shape, tensors, is_tied, prepack, placement)
        except KeyError as error:
            raise CheckpointError(f"the target lacks the tensor {error.args[0]}") from error
        self.device, self.dtype = self._embedding.device, self._embedding.dtype
        self.cache = make_cache(shape.of_heads(), rotary, self.device, self.dtype, kv)
        self.spec = TargetSpec(
            vocab_size=self._embedding.shape[0],
            hidden_size=self._embedding.shape[1],
            num_layers=shape.num_layers,
            context_limit=context_limit,
            stop_token_ids=stop_token_ids,
            rollback="crop",
            batches=True,
            max_rows=MAX_SKINNY_ROWS,
        )

    def _take_weights(
        self,
        shape: DenseShape,
        tensors: Weights,
        is_tied: bool,
        prepack: bool,
        placement: Placement,
    ) -> None:
        self._embedding, head = take_tables(tensors, tied=is_tied)
        final_norm = tensors.pop("model.norm.weight")
        weights = LayerWeights(
            *(tensors, shape.eps, self._embedding.dtype),
            prepack=prepack and placement.prepacks,
            rereads=placement.rereads,
        )
        builds = [partial(weights.build, index) for index in range(shape.num_layers)]
        layers = placement.place(builds)
        if tensors and not placement.rereads:
            raise CheckpointError(f"the target has the unexpected tensor {next(iter(tensors))}")
        self.decoder = Decoder(layers, final_norm, head_dim=shape.head_dim, eps=shape.eps)
        self._head = SkinnyLinear(head, prepack=prepack, is_shared=True)

    def embedding(self) -> torch.Tensor:
        """As Target.embedding."""
        return self._embedding

    def output_head(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """As Target.output_head."""
        return self._head

    @property
    def slots(self) -> SlotPool:
        return self.cache.slots

    def prefill(self, slot: KVSlot, token_ids: torch.Tensor, total: int | None = None) -> Pass:
        """As Target.prefill."""
        rows = self.cache.at([slot], [token_ids.shape[0]], causal=True)
        blocks = EmbeddedBlocks(self._embedding, token_ids)
        hidden, taps = self.decoder.run(blocks, rows, self.tap_layers)
        slot.length += token_ids.shape[0]
        return Pass(self._head(hidden[-1:]), taps)

    def verify(self, slots: Sequence[KVSlot], blocks: Sequence[torch.Tensor]) -> Pass:
        """As Target.verify."""
        rows = self.cache.at(slots, [block.shape[0] for block in blocks], causal=True)
        return self.run(torch.cat(list(blocks)), rows)

    def paged_cache(self) -> PagedCache | None:
        return self.cache if isinstance(self.cache, PagedCache) else None

    def run(
        self, token_ids: torch.Tensor, rows: CachePass, drafts: torch.Tensor | None = None
    ) -> Pass:
        """As DeviceTarget.run."""
        blocks = EmbeddedBlocks(self._embedding, token_ids, drafts)
        hidden, taps = self.decoder.run(blocks, rows, self.tap_layers)
        return Pass(self._head(hidden), taps)

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [N, H] -> [N, H]."""
        return self.decoder.final_norm(hidden)
