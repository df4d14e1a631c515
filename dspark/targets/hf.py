"""Any transformers causal LM as a target. Slower than `dense`, and correct for every architecture.

Rollback depends on the cache: crop if every layer holds keys, all of them or a window; rebuild for
DeepSeek-V4's; otherwise (linear attention) a copy is taken before each verify pass, and after a
rejection the accepted rows run again on it. A model without a cache reruns the whole text.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from dspark.checkpoints.model_folder import Folder
from dspark.targets.base import Pass, TargetSpec
from dspark.targets.context import context_limit
from dspark.targets.deepseek_v4 import RecordedPass
from dspark.targets.hf_call import HfCall
from dspark.targets.hf_model import input_embeddings, read_hf_model
from dspark.targets.hf_taps import HookedTaps
from dspark.targets.rope_length import RopeLengths


@dataclass(slots=True)
class HfSlot:
    """A request's cache; `pending` is the last verified block, `snapshot` the cache before it.

    Of its committed rows, `token_ids` [length] are kept if all may have to run again, and
    `lengths`, the text length by which each was rotated, if RoPE depends on it.
    """

    cache: Any
    token_ids: torch.Tensor
    length: int = 0
    lengths: list[int] = field(default_factory=list)
    pending: torch.Tensor | None = None
    snapshot: Any = None


class HfTarget:
    """One request per pass; several run one after another."""

    def __init__(
        self,
        model: Any,
        *,
        tap_layers: tuple[int, ...] = (),
        stop_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.model = model.eval()
        self.tap_layers = tap_layers
        self.device, self.dtype = model.device, model.dtype
        self._call = HfCall(model)
        self._taps = HookedTaps(model, tap_layers, is_stepwise=self._call.is_stepwise)
        config = model.config.get_text_config()
        self._ropes = RopeLengths(model)
        self.spec = TargetSpec(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=int(getattr(config, "num_hidden_layers", 0)),
            context_limit=context_limit(config),
            stop_token_ids=stop_token_ids,
            rollback=self._call.rollback,
            batches=False,
            chunks_prompts=not self._call.is_stepwise,
            recomputed_at=self._ropes.recomputed_at(config),
        )
        self._keeps_ids = self.spec.rollback == "rerun" or self.spec.recomputed_at is not None

    def embedding(self) -> torch.Tensor:
        """As Target.embedding."""
        return input_embeddings(self.model)

    def output_head(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """As Target.output_head."""
        head: Callable[[torch.Tensor], torch.Tensor] = self.model.get_output_embeddings()
        return head

    def open(self) -> HfSlot:
        empty = torch.empty(0, dtype=torch.long, device=self.device)
        return HfSlot(self._call.new_cache(), empty)

    def close(self, slot: HfSlot) -> None:
        slot.cache = slot.pending = slot.snapshot = None

    def length(self, slot: HfSlot) -> int:
        return slot.length

    def prefill(self, slot: HfSlot, token_ids: torch.Tensor, total: int | None = None) -> Pass:
        """As Target.prefill."""
        count = token_ids.shape[0]
        lengths = [total or slot.length + count] * count
        logits = self._forward(slot, token_ids, lengths, num_kept=1)
        self._grow(slot, token_ids, lengths)
        if self.spec.rollback == "crop":
            slot.cache.crop(0)
        return Pass(logits, self._last_taps(logits))

    def verify(self, slots: Sequence[HfSlot], blocks: Sequence[torch.Tensor]) -> Pass:
        """As Target.verify."""
        logits, taps = [], []
        for slot, block in zip(slots, blocks, strict=True):
            if self.spec.rollback == "replay":
                slot.snapshot = _copied(slot.cache)
            elif self.spec.rollback == "rebuild":
                slot.snapshot = RecordedPass(slot.cache)
            slot.pending = block
            logits.append(self._run_block(slot, block))
            taps.append(self._last_taps(logits[-1]))
        return Pass(torch.cat(logits), torch.cat(taps))

    def commit(self, slots: Sequence[HfSlot], num_kept: Sequence[int]) -> None:
        for slot, kept in zip(slots, num_kept, strict=True):
            assert slot.pending is not None
            rows, lengths = slot.pending[:kept], self._lengths_behind(slot, kept)
            refused = slot.pending.shape[0] - kept
            if self.spec.rollback == "rebuild":
                slot.snapshot.keep(kept, slot.pending.shape[0])
            elif self.spec.rollback == "crop":
                slot.cache.crop(-refused)
            elif self.spec.rollback == "replay" and refused:
                slot.cache = slot.snapshot
                if kept:
                    self._forward(slot, rows, lengths, num_kept=1)
            self._grow(slot, rows, lengths)
            slot.pending = slot.snapshot = None

    def fork(self, slot: HfSlot, length: int) -> None:
        """As Target.fork: layers of some kinds could not be cut."""

    def held_bytes(self, slots: Collection[HfSlot]) -> int:
        """As Target.held_bytes."""
        layers = [layer for slot in slots for layer in getattr(slot.cache, "layers", ())]
        values = [value for layer in layers for value in vars(layer).values()]
        return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))

    def truncate(self, slot: HfSlot, length: int, total: int | None = None) -> bool:
        era = None if total is None else self._ropes.era(total)
        if era and any(self._ropes.era(each) != era for each in slot.lengths[:length]):
            return False
        surplus = slot.length - length
        if surplus > 0 and self.spec.rollback != "rerun":
            if self.spec.rollback != "crop" or any(slot.cache.is_sliding):
                return False
            slot.cache.crop(-surplus)
        slot.length = min(slot.length, length)
        slot.token_ids, slot.lengths = slot.token_ids[:length], slot.lengths[:length]
        return True

    def _run_block(self, slot: HfSlot, block: torch.Tensor) -> torch.Tensor:
        lengths = self._lengths_behind(slot, block.shape[0])
        if slot.length != self.spec.recomputed_at:
            return self._forward(slot, block, lengths)
        slot.cache, slot.lengths = self._call.new_cache(), [lengths[0]] * slot.length
        token_ids = torch.cat([slot.token_ids, block])
        slot.length = 0
        logits = self._forward(slot, token_ids, slot.lengths + lengths, num_kept=block.shape[0])
        slot.length = len(slot.lengths)
        if self.tap_layers:
            self._taps.keep(block.shape[0])
        return logits

    def _lengths_behind(self, slot: HfSlot, count: int) -> list[int]:
        """A decoded row is the last of its text, whatever drafts follow it."""
        return list(range(slot.length + 1, slot.length + count + 1))

    def _grow(self, slot: HfSlot, token_ids: torch.Tensor, lengths: list[int]) -> None:
        slot.length += token_ids.shape[0]
        if self._keeps_ids:
            slot.token_ids = torch.cat([slot.token_ids, token_ids])
        if self._ropes.is_variable:
            slot.lengths += lengths

    def _forward(
        self, slot: HfSlot, token_ids: torch.Tensor, lengths: list[int], num_kept: int | None = None
    ) -> torch.Tensor:
        """Logits [N, V], or of the last rows only, in the model's dtype."""
        self._taps.clear()
        self._ropes.lengths = lengths
        rows = token_ids.shape[0] if num_kept is None else num_kept
        if self.spec.rollback == "rerun":
            return self._call(None, torch.cat([slot.token_ids, token_ids]), 0, rows)
        return self._call(slot.cache, token_ids, slot.length, rows)

    def _last_taps(self, like: torch.Tensor) -> torch.Tensor:
        if not self.tap_layers:
            return like.new_empty(like.shape[0], 0)
        return self._taps.rows()


def _copied(cache: DynamicCache) -> DynamicCache:
    """Keys and values are shared: they are never overwritten, unlike linear attention's states."""
    held = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    shared = [t for layer in held for t in (layer.keys, layer.values) if t is not None]
    return copy.deepcopy(cache, {id(tensor): tensor for tensor in shared})


def load_hf(
    directory: Folder,
    *,
    tap_layers: tuple[int, ...],
    stop_token_ids: frozenset[int],
    device: torch.device,
    dtype: torch.dtype,
) -> HfTarget:
    """Raises CheckpointError if transformers cannot load the directory."""
    model = read_hf_model(directory, device=device, dtype=dtype)
    return HfTarget(model, tap_layers=tap_layers, stop_token_ids=stop_token_ids)
