"""The frozen target as training sees it: taps and final hidden states of whole sequences."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dspark.config import Precision
from dspark.drafters.vocabulary import soft_cap
from dspark.errors import InputError
from dspark.graft.target.tap_cache import TapCache, TokenIds, identity
from dspark.targets.hf_model import input_embeddings, read_hf_model
from dspark.targets.hf_taps import HookedTaps, decoder_layers

TOKENS_AT_ONCE = 2560  # of a pass, whose weights are read once for all
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
        self._kept: dict[TokenIds, TargetView] = {}
        self._bytes_left = memory_bytes
        self._together: dict[TokenIds, list[TokenIds]] = {}
        self._read: dict[TokenIds, TargetView] = {}
        self.reads_together = False

    def tap(self, layers: Sequence[int]) -> None:
        """Sets the layers to hook, -1 being the embeddings. To be called once."""
        self.tap_layers = tuple(layers)
        self._taps = HookedTaps(self.model, layers)

    def fit(self, num_tokens: int) -> bool:
        """Whether the views of so many tokens fit into memory.

        If not, those of some steps are from then on computed together, for `read`, and not kept: a
        view is rounded otherwise in each company, and must not depend on what was met before.
        """
        fits = num_tokens * self._bytes_a_token <= self._bytes_left
        self.reads_together = not fits and self.cache is None
        return fits

    def keep_together(self, sequences: Iterable[TokenIds]) -> None:
        """Views of these are made in passes over texts of about one length, as they are kept. Which
        texts share a pass, and so how they are rounded, depends on nothing else."""
        for some in batches(sequences):
            self._together.update(dict.fromkeys(some, some))

    def read(self, sequences: Iterable[TokenIds]) -> None:
        """Makes views, of which `view` is asked before the next call, in passes over texts of about
        one length."""
        if not self.reads_together:
            return
        self._read = {}
        for some in batches(sequences):
            self._read.update(zip(some, self._forward(some), strict=True))

    def view(self, token_ids: TokenIds) -> TargetView:
        """One sequence, from memory if it was made before and fitted there, else from the cache.

        Rounded to bf16 either way, so that a run depends neither on its memory nor on its disk.
        """
        found = self._read.get(token_ids)
        if found is None:
            found = self._kept.get(token_ids) or self._cached(token_ids)
            if found is None:
                found = self._make(token_ids)
            if not self.reads_together:
                self._read = {token_ids: found}  # asked for in several passes in a row
        return TargetView(found.taps.float(), found.hidden.float())

    def keep_on_disk(
        self,
        folder: Path,
        directory: Path,
        sequences: Iterable[TokenIds],
        reserve_bytes: int = 0,
    ) -> str:
        """Keep views in `folder` from now on, which must have room for those of all `sequences`.

        `directory` is the target's folder. Returns a note with the bytes to be written.
        """
        facts = (self.tap_layers, self.embedding.device.type, str(self.model.dtype))
        self.cache = TapCache(folder, identity(directory, *facts), reserve_bytes)
        return self.cache.require_room(sequences, self._bytes_a_token)

    @property
    def _bytes_a_token(self) -> int:
        width = (len(self.tap_layers) + 1) * self.config.hidden_size
        return int(width * torch.bfloat16.itemsize)

    def _cached(self, token_ids: TokenIds) -> TargetView | None:
        cached = None if self.cache is None else self.cache.read(token_ids)
        if cached is None:
            return None
        view = TargetView(**{name: each.to(self.embedding.device) for name, each in cached.items()})
        self._keep(token_ids, view)
        return view

    def _make(self, token_ids: TokenIds) -> TargetView:
        """And of the texts in its pass, if there is a place to keep them."""
        some = self._together.get(token_ids, [token_ids])
        if not self._has_room(some):
            some = [token_ids]
        views = dict(zip(some, self._forward(some), strict=True))
        for ids, view in views.items():
            if ids != token_ids and self._is_kept(ids):  # in other company: its rounding stays
                continue
            if self.cache is not None:
                self.cache.write(ids, view._asdict())
            self._keep(ids, view)
        return views[token_ids]

    def _is_kept(self, token_ids: TokenIds) -> bool:
        return token_ids in self._kept or (self.cache is not None and token_ids in self.cache)

    def _has_room(self, sequences: Sequence[TokenIds]) -> bool:
        size = sum(map(len, sequences)) * self._bytes_a_token
        return size <= self._bytes_left or (self.cache is not None and self.cache.takes(size))

    def _keep(self, token_ids: TokenIds, view: TargetView) -> None:
        """In memory, while there is room."""
        size = sum(tensor.nbytes for tensor in view)
        if token_ids not in self._kept and size <= self._bytes_left:
            self._bytes_left -= size
            self._kept[token_ids] = view

    @torch.no_grad()
    def _forward(self, sequences: Sequence[TokenIds]) -> list[TargetView]:
        """In one pass, padded behind, where the tokens of a causal model do not see it."""
        ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = torch.tensor(sequence)
        ids = ids.to(self.embedding.device)
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state.bfloat16()
        views = []
        for index, length in enumerate(map(len, sequences)):
            taps = self._taps.rows(index)[:length].bfloat16()
            views.append(TargetView(taps, hidden[index, :length].clone()))
        self._taps.clear()
        return views


def batches(sequences: Iterable[TokenIds]) -> Iterator[list[TokenIds]]:
    """Different ones by length, of at most TOKENS_AT_ONCE tokens, or one longer one."""
    some: list[TokenIds] = []
    for sequence in sorted(set(sequences), key=lambda ids: (len(ids), ids)):
        if some and (len(some) + 1) * len(sequence) > TOKENS_AT_ONCE:
            yield some
            some = []
        some.append(sequence)
    if some:
        yield some


def load_frozen(
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    memory_bytes: int = 0,
    precision: Precision = "float32",
) -> FrozenTarget:
    """`dtype` float32 is that of `precision`. Raises CheckpointError if transformers cannot load
    the directory."""
    if dtype == torch.float32 and precision == "bfloat16":
        dtype = torch.bfloat16
    return FrozenTarget(read_hf_model(directory, device=device, dtype=dtype), memory_bytes)


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
