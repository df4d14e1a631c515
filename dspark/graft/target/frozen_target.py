"""The frozen target as training sees it: taps and final hidden states of whole sequences."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dspark.drafters.vocabulary import soft_cap
from dspark.errors import InputError
from dspark.graft.target.tap_cache import TapCache, identity
from dspark.targets.hf_model import input_embeddings, read_hf_model
from dspark.targets.hf_taps import HookedTaps, decoder_layers

LOGIT_TOLERANCE = 0.05  # far above bf16's rounding, far below a scale or a bias


class TargetView(NamedTuple):
    """taps [S, T * H]; hidden [S, H] after the final norm, whose product with the output head
    gives the logits, before a soft-cap."""

    taps: torch.Tensor
    hidden: torch.Tensor


class FrozenTarget:
    """Hooks on the tapped layers only; whole sequences, no cache of keys."""

    def __init__(self, model: Any, memory_bytes: int = 0) -> None:
        self.model = model.eval().requires_grad_(False)
        self.config = model.config.get_text_config()
        self.embedding = input_embeddings(model)
        self.output_head: torch.Tensor = model.get_output_embeddings().weight
        self.softcap: float | None = getattr(self.config, "final_logit_softcapping", None)
        self.layers = decoder_layers(model)
        _check_logits(self)
        self.tap_layers: tuple[int, ...] = ()
        self.cache: TapCache | None = None
        self._taps = HookedTaps(model, ())
        self._kept: dict[tuple[int, ...], TargetView] = {}
        self._bytes_left = memory_bytes
        self._last: tuple[tuple[int, ...], TargetView] | None = None  # several passes in a row

    def tap(self, layers: Sequence[int]) -> None:
        """Sets the layers to hook, -1 being the embeddings. To be called once."""
        self.tap_layers = tuple(layers)
        self._taps = HookedTaps(self.model, layers)

    def view(self, token_ids: tuple[int, ...]) -> TargetView:
        """One sequence, from memory if it was seen before and fitted there, else from the cache.

        Rounded to bf16 either way, so that a run depends neither on its memory nor on its disk.
        """
        cached = self._kept.get(token_ids)
        if cached is None and self._last is not None and self._last[0] == token_ids:
            cached = self._last[1]
        elif cached is None:
            cached = self._cached(token_ids)
            self._last = (token_ids, cached)
            size = sum(tensor.nbytes for tensor in cached)
            if size <= self._bytes_left:
                self._bytes_left -= size
                self._kept[token_ids] = cached
        return TargetView(cached.taps.float(), cached.hidden.float())

    def keep_on_disk(
        self,
        folder: Path,
        directory: Path,
        sequences: Iterable[tuple[int, ...]],
        reserve_bytes: int = 0,
    ) -> str:
        """Keep views in `folder` from now on, which must have room for those of all `sequences`.

        `directory` is the target's folder. Returns a note with the bytes to be written.
        """
        formats = {str(parameter.dtype) for parameter in self.model.parameters()}
        facts = (self.tap_layers, self.embedding.device.type, " ".join(sorted(formats)))
        self.cache = TapCache(folder, identity(directory, *facts), reserve_bytes)
        width = (len(self.tap_layers) + 1) * self.config.hidden_size
        return self.cache.require_room(sequences, width * torch.bfloat16.itemsize)

    def _cached(self, token_ids: tuple[int, ...]) -> TargetView:
        if self.cache is None:
            return self._forward(token_ids)
        cached = self.cache.read(token_ids)
        if cached is not None:
            return TargetView(**{k: t.to(self.embedding.device) for k, t in cached.items()})
        view = self._forward(token_ids)
        self.cache.write(token_ids, view._asdict())
        return view

    @torch.no_grad()
    def _forward(self, token_ids: tuple[int, ...]) -> TargetView:
        ids = torch.tensor([token_ids], device=self.embedding.device)
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        taps = self._taps.rows()
        self._taps.clear()
        return TargetView(taps.bfloat16(), hidden.bfloat16())


def load_frozen(
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    memory_bytes: int = 0,
    has_bfloat16_products: bool = False,
) -> FrozenTarget:
    """Raises CheckpointError if transformers cannot load the directory."""
    model = read_hf_model(directory, device=device, dtype=dtype)
    if has_bfloat16_products:
        with_bfloat16_products(model.base_model)
    return FrozenTarget(model, memory_bytes)


def with_bfloat16_products(model: nn.Module) -> None:
    """The weights of linear maps become bf16, and what they multiply; what lies between them,
    norms, softmax and the residual stream, remains as it was."""
    for module in model.modules():
        if type(module) is not nn.Linear or module.weight.dtype != torch.float32:
            continue
        module.bfloat16()
        module.register_forward_pre_hook(lambda _module, given: (given[0].bfloat16(),))
        module.register_forward_hook(lambda _module, _given, made: made.float())


@torch.no_grad()
def _check_logits(target: FrozenTarget) -> None:
    """Raises InputError for a model whose logits are computed in an unsupported way."""
    ids = torch.arange(2, device=target.embedding.device).unsqueeze(0)
    logits = target.model(input_ids=ids, use_cache=False).logits[0].float()
    hidden = target.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    made = soft_cap(hidden.float() @ target.output_head.float().t(), target.softcap)
    error = (made - logits).abs().max() / logits.abs().max().clamp_min(1e-6)
    if error > LOGIT_TOLERANCE:
        raise InputError(
            f"the logits of {type(target.model).__name__} are not its output head's product",
            "Heads for models that scale or shift their logits cannot be trained yet.",
        )
