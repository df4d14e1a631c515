"""Any transformers causal LM as a target. Slower than `dense`, and right for every architecture.

Rollback by kind of cache: crop where every layer holds keys, all of them or a window; rebuild for
DeepSeek-V4's; otherwise (linear attention) a copy is taken before each verify pass, and after a
refusal the accepted rows are run again on it.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from dspark.checkpoints.deepseek_v4_config import MODEL_TYPE
from dspark.errors import CheckpointError
from dspark.targets.base import Pass, Rollback, TargetSpec
from dspark.targets.context import context_limit
from dspark.targets.deepseek_v4 import RecordedPass
from dspark.targets.hf_model import read_hf_model

# layers of a cache that crop puts back; a dummy reads the keys of another layer
CROPPED = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}


@dataclass(slots=True)
class HfSlot:
    """A request's cache; `pending` is the last verified block, `snapshot` the cache before it."""

    cache: Any
    length: int = 0
    pending: torch.Tensor | None = None
    snapshot: Any = None


@dataclass(slots=True)
class _Taps:
    """What the hooks saw during the last forward, by layer."""

    seen: dict[int, torch.Tensor] = field(default_factory=dict)

    def record(self, index: int) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            self.seen[index] = output[0] if isinstance(output, tuple) else output

        return hook


class HfTarget:
    """One request a pass; several are run one after the other."""

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
        self._taps = _Taps()
        layers = decoder_layers(model)
        for index in tap_layers:
            module = layers[index] if index >= 0 else model.get_input_embeddings()
            module.register_forward_hook(self._taps.record(index))
        # named so since transformers 5.24
        is_renamed = "cache" in inspect.signature(model.forward).parameters
        self._cache_keyword = "cache" if is_renamed else "past_key_values"
        config = model.config.get_text_config()
        self._has_shared_keys = bool(getattr(config, "num_kv_shared_layers", None))
        self.spec = TargetSpec(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=len(layers),
            context_limit=context_limit(config),
            stop_token_ids=stop_token_ids,
            rollback=_rollback_of(config),
            batches=False,
        )

    def embedding(self) -> torch.Tensor:
        return input_embeddings(self.model)

    def output_head(self) -> Callable[[torch.Tensor], torch.Tensor]:
        head: Callable[[torch.Tensor], torch.Tensor] = self.model.get_output_embeddings()
        return head

    def _new_cache(self) -> Any:
        cache: Any = DynamicCache(config=self.model.config.get_text_config())
        if self.spec.rollback == "crop":
            cache.activate_past_recording()  # a window keeps what slid out until the next crop
        return cache

    def open(self) -> HfSlot:
        return HfSlot(self._new_cache())

    def length(self, slot: HfSlot) -> int:
        return slot.length

    def prefill(self, slot: HfSlot, token_ids: torch.Tensor) -> Pass:
        logits = self._forward(slot, token_ids, logits_to_keep=1)
        slot.length += token_ids.shape[0]
        if self.spec.rollback == "crop":
            slot.cache.crop(0)
        return Pass(logits, self._last_taps(logits))

    def verify(self, slots: Sequence[HfSlot], blocks: Sequence[torch.Tensor]) -> Pass:
        logits, taps = [], []
        for slot, block in zip(slots, blocks, strict=True):
            if self.spec.rollback == "replay":
                slot.snapshot = _copied(slot.cache)
            elif self.spec.rollback == "rebuild":
                slot.snapshot = RecordedPass(slot.cache)
            slot.pending = block
            logits.append(self._forward(slot, block))
            taps.append(self._last_taps(logits[-1]))
        return Pass(torch.cat(logits), torch.cat(taps))

    def commit(self, slots: Sequence[HfSlot], num_kept: Sequence[int]) -> None:
        for slot, kept in zip(slots, num_kept, strict=True):
            assert slot.pending is not None
            refused = slot.pending.shape[0] - kept
            if self.spec.rollback == "rebuild":
                slot.snapshot.keep(kept, slot.pending.shape[0])
            elif self.spec.rollback == "crop":
                slot.cache.crop(-refused)
            elif refused:
                slot.cache = slot.snapshot
                if kept:
                    self._forward(slot, slot.pending[:kept], logits_to_keep=1)
            slot.length += kept
            slot.pending = slot.snapshot = None

    def truncate(self, slot: HfSlot, length: int) -> bool:
        surplus = slot.length - length
        if surplus > 0 and (self.spec.rollback != "crop" or any(slot.cache.is_sliding)):
            return False
        if surplus > 0:
            slot.cache.crop(-surplus)
            slot.length = length
        return True

    def _forward(
        self, slot: HfSlot, token_ids: torch.Tensor, logits_to_keep: int = 0
    ) -> torch.Tensor:
        """Logits [N, V] (only the last rows with logits_to_keep) in the model's own dtype."""
        self._taps.seen.clear()
        keep: int | torch.Tensor = logits_to_keep
        if self._has_shared_keys and logits_to_keep:  # by a number, Gemma4 drops rows before taps
            keep = torch.arange(-logits_to_keep, 0, device=self.device)
        positions = torch.arange(
            slot.length, slot.length + token_ids.shape[0], device=self.device
        ).unsqueeze(0)
        out = self.model(
            input_ids=token_ids.unsqueeze(0),
            position_ids=positions,
            **{self._cache_keyword: slot.cache},
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = out.logits[0]
        return logits

    def _last_taps(self, like: torch.Tensor) -> torch.Tensor:
        if not self.tap_layers:
            return like.new_empty(like.shape[0], 0)
        taps = [self._taps.seen[index][0] for index in self.tap_layers]
        if taps[0].dim() == 3:  # DeepSeek-V4's streams: heads want their mean
            taps = [tap.mean(dim=1) for tap in taps]
        return torch.cat(taps, dim=-1)


def input_embeddings(model: Any) -> torch.Tensor:
    """[V, H] as the first layer reads them: Gemma scales what is stored."""
    module = model.get_input_embeddings()
    weight: torch.Tensor = module.weight
    if type(module) is nn.Embedding:
        return weight
    with torch.no_grad():
        read: torch.Tensor = module(torch.arange(len(weight), device=weight.device))
    return read


def decoder_layers(model: Any) -> Any:
    """The list of decoder layers, wherever the architecture keeps it."""
    for path in ("model.layers", "model.language_model.layers", "transformer.h", "gpt_neox.layers"):
        module = model
        for name in path.split("."):
            module = getattr(module, name, None)
        if module is not None:
            return module
    raise CheckpointError(f"no decoder layers found in {type(model).__name__}")


def _rollback_of(config: Any) -> Rollback:
    if config.model_type == MODEL_TYPE:
        return "rebuild"
    kinds = {type(layer).__name__ for layer in DynamicCache(config=config).layers}
    return "crop" if kinds and kinds <= CROPPED else "replay"


def _copied(cache: DynamicCache) -> DynamicCache:
    """Keys and values are shared: they are never written into, unlike linear attention's states."""
    held = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    shared = [t for layer in held for t in (layer.keys, layer.values) if t is not None]
    return copy.deepcopy(cache, {id(tensor): tensor for tensor in shared})


def load_hf(
    directory: Path,
    *,
    tap_layers: tuple[int, ...],
    stop_token_ids: frozenset[int],
    device: torch.device,
    dtype: torch.dtype,
) -> HfTarget:
    """Raises CheckpointError where transformers cannot load the directory."""
    model = read_hf_model(directory, device=device, dtype=dtype)
    return HfTarget(model, tap_layers=tap_layers, stop_token_ids=stop_token_ids)
