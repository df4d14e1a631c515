"""The contract of a target: it runs tokens and can roll them back."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from dspark.kvcache.caches import CachePass, PagedCache
from dspark_kernels.cpu.pool import Job
from dspark_kernels.cpu.weight_table import Table

Rollback = Literal["crop", "rebuild", "replay", "rerun"]
Slot = Any  # a target's state of one request; opaque to others


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """Sizes and abilities of a target. `batches`: several requests share one pass; `max_rows`: rows
    of a pass up to which a row is bit-identical whatever else is in the batch; `chunks_prompts`:
    a prompt in chunks is as fast as in one piece, of `chunk` tokens where the target has a size of
    its own; `recomputed_at`: a length beyond which the whole
    cache is recomputed, which no block crosses.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    context_limit: int
    stop_token_ids: frozenset[int]
    rollback: Rollback
    batches: bool
    max_rows: int | None = None
    chunks_prompts: bool = True
    chunk: int | None = None
    recomputed_at: int | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the rows of some requests, request after request.

    logits [N, V]; taps [N, T * H] (T = 0 without a drafter); the `largest` of each row
    of logits, as Largest, where the pass has found it.
    """

    logits: torch.Tensor
    taps: torch.Tensor
    largest: tuple[Sequence[int], Sequence[int]] | None = None


class Target(Protocol):
    """All tensors live on the target's device."""

    spec: TargetSpec
    device: torch.device
    dtype: torch.dtype

    def embedding(self) -> Table:
        """The input embedding [V, H], shared with the drafter."""
        ...

    def output_head(self) -> Any:
        """The output head as a callable [N, H] -> [N, V], shared with the drafter."""
        ...

    def open(self) -> Slot:
        """A fresh, empty request."""
        ...

    def close(self, slot: Slot) -> None:
        """Release the request's memory; the slot is not used again."""
        ...

    def length(self, slot: Slot) -> int:
        """Committed tokens."""
        ...

    def prefill(self, slot: Slot, token_ids: torch.Tensor, total: int | None = None) -> Pass:
        """Append and commit a chunk [n] of a prompt of `total` tokens (None: it ends here);
        logits [1, V] are those of the chunk's last token only."""
        ...

    def verify(self, slots: Sequence[Slot], blocks: Sequence[torch.Tensor]) -> Pass:
        """Run each block [n] after its request's committed tokens, without committing any; the pass
        has the rows of all blocks."""
        ...

    def commit(self, slots: Sequence[Slot], num_kept: Sequence[int]) -> None:
        """Keep the first rows of the last verified blocks and roll back the rest."""
        ...

    def fork(self, slot: Slot, length: int) -> Slot | None:
        """Another request that begins with the first `length` committed tokens of this one; None
        if the cache cannot do that."""
        ...

    def held_bytes(self, slots: Collection[Slot]) -> int:
        """Memory that these requests hold, what they share counted once."""
        ...

    def truncate(self, slot: Slot, length: int, total: int | None = None) -> bool:
        """Drop committed tokens from `length` on; False if the cache cannot do that, or if a
        prompt of `total` tokens would have filled it differently."""
        ...


Behind = Callable[[torch.Tensor], Job]


@runtime_checkable
class KernelTarget(Target, Protocol):
    """A target whose pass is one call of the CPU's kernels, which others can join."""

    def verify_ids(
        self,
        slots: Sequence[Slot],
        blocks: Sequence[Sequence[int]],
        behind: Behind | None = None,
    ) -> Pass:
        """As `verify`, to be read before the next pass overwrites it; `behind` makes a job of the
        taps [at least N, T * H], for N up to 64, that runs in the same call."""
        ...


@runtime_checkable
class DeviceTarget(Target, Protocol):
    """A target whose rounds the device can drive: the host needs to know nothing about a pass."""

    tap_layers: tuple[int, ...]

    def paged_cache(self) -> PagedCache | None:
        """Its cache if it is paged; only then can the device drive rounds."""
        ...

    def run(
        self, token_ids: torch.Tensor, rows: CachePass, drafts: torch.Tensor | None = None
    ) -> Pass:
        """As `verify`, for a pass whose plan is on the device: of tokens [R], each followed by its
        row of drafts [R, K]."""
        ...
