"""The contract of a drafter: it turns taps into a block of proposals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from dspark.kvcache.caches import CachePass, PagedCache
from dspark_kernels import DraftedBlock
from dspark_kernels.cpu.pool import Job

DraftSlot = Any  # a drafter's state of one request; opaque to others


@dataclass(frozen=True, slots=True)
class Proposals:
    """Blocks for R requests. confidences are c_k, each given that all drafts before were accepted.

    token_ids [R, K]; probs R tensors [K, V] (None unless drafts are kept by rejection's rule, and
    where nothing was drawn: a draft that the chooser did not choose is certain); confidences [R, K]
    float32 or None without a confidence head; lengths R numbers of drafts where blocks may be
    shorter than K; chosen_probs R lists of the drafts' probabilities, empty for a request that
    does not ask, None where they all went through the chooser.
    """

    token_ids: torch.Tensor
    probs: Sequence[torch.Tensor | None]
    confidences: torch.Tensor | None
    lengths: Sequence[int] | None = None
    chosen_probs: Sequence[Sequence[float]] | None = None


class Race(NamedTuple):
    """The token of the largest logit / temperature + noise; without noise of the largest logit.
    `noise` of tokens [X] is [places, X]. `tells_probs`: the request asks for the drafts'
    probabilities."""

    temperature: float = 1.0
    noise: Callable[[torch.Tensor], torch.Tensor] | None = None
    tells_probs: bool = False


class Chooser(Protocol):
    """Chooses one token for each of R requests, position by position in a block."""

    @property
    def are_greedy(self) -> Sequence[bool]:
        """Of each request: whether a draft is accepted only if it is the target's likeliest."""
        ...

    def races(self, num_places: int) -> Sequence[Race] | None:
        """How each request chooses, if that is known before the logits are; None if not."""
        ...

    def choose(
        self,
        logits: torch.Tensor,
        token_ids: Sequence[torch.Tensor | None] | None = None,
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
        """logits [R, X] of the next position -> columns [R] and, if rejection needs it, the
        distribution [X]. Columns are tokens unless a request's token_ids [X] map them.
        """
        ...


class Drafter(Protocol):
    """`target_layer_ids` are its taps, `num_weights` the number of weights read per drafted
    block."""

    block_size: int
    target_layer_ids: tuple[int, ...]
    num_weights: int

    def open(self) -> DraftSlot:
        """A fresh request without context; never None, which is a request without drafts."""
        ...

    def close(self, slot: DraftSlot) -> None:
        """Release the request's memory; the slot is not used again."""
        ...

    def extend(
        self,
        slots: Sequence[DraftSlot],
        token_ids: Sequence[torch.Tensor],
        taps: Sequence[torch.Tensor],
    ) -> None:
        """Append newly committed tokens [n] and their taps [n, T * H], one pair per request."""
        ...

    def propose(
        self, slots: Sequence[DraftSlot], anchors: torch.Tensor, chooser: Chooser
    ) -> Proposals:
        """Draft a block after each anchor [R]; leaves the slots unchanged."""
        ...

    def fork(self, slot: DraftSlot, length: int) -> DraftSlot:
        """Another request that begins with the first `length` tokens of this one."""
        ...

    def truncate(self, slot: DraftSlot, length: int) -> None:
        """Drop the context from `length` tokens on."""
        ...


@runtime_checkable
class JoiningDrafter(Drafter, Protocol):
    """A drafter that takes taps in within a KernelTarget's pass: of all its rows, before it is
    known which of them are committed."""

    def job_of_taps(
        self, slots: Sequence[DraftSlot], sizes: Sequence[int], taps: torch.Tensor
    ) -> Job:
        """For the taps [at least N, T * H] of the next `sizes` rows of each request, N in all; to
        be run before the next one is asked for. The slots stay as they are."""
        ...

    def keep(self, slots: Sequence[DraftSlot], token_ids: Sequence[Sequence[int]]) -> None:
        """Of the rows of the last job, the first of each request: newly committed tokens."""
        ...


@runtime_checkable
class DeviceDrafter(Drafter, Protocol):
    """A drafter whose rounds the device can drive; a slot's `context` is its slot in the cache.

    A block is drafted from `block_rows` rows. `draft_vocabulary` [N] are the ids that a request
    drafts from in addition to its own tokens, None for all. `calibration` [2, 2, K] is of
    the logits of confidences, as Calibrator.table.
    """

    cache: PagedCache
    block_rows: int
    has_confidence: bool
    draft_vocabulary: torch.Tensor | None
    calibration: torch.Tensor

    def draft(
        self,
        anchors: torch.Tensor,
        rows: CachePass,
        temperatures: torch.Tensor,
        seeds: torch.Tensor,
        positions: torch.Tensor,
        logit_mask: torch.Tensor | None = None,
    ) -> DraftedBlock:
        """A block after each anchor [R] at its position [R], without the host. Noise is a function
        of seed and position alone. logit_mask [R, V] is added to every row's logits."""
        ...

    def append(self, taps: torch.Tensor, rows: CachePass) -> None:
        """As `extend`, for the taps [N, T * H] of all rows of a pass."""
        ...

    def choose_taps(self, tap_layers: Sequence[int]) -> None:
        """The target taps these layers, the head's own among them."""
        ...
