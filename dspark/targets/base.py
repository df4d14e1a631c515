"""The contract of a target: it runs tokens and can take them back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from dspark.kvcache.caches import CachePass, PagedCache
from dspark_kernels.cpu.weight_table import Table

Rollback = Literal["crop", "rebuild", "replay", "rerun"]
Slot = Any  # a target's own state of one request; opaque to everyone else


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """What a target is and can do. `batches` tells whether several requests share one pass;
    `max_rows` are those of a pass up to which a row is the same to the bit in any company;
    `chunks_prompts` whether a prompt in parts is as quick as in one;
    `recomputed_at` is a length beyond which the whole cache is computed anew: no block crosses it.
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
    recomputed_at: int | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the rows of some requests, request after request.

    logits [N, V]; taps [N, T * H] (T = 0 without a drafter).
    """

    logits: torch.Tensor
    taps: torch.Tensor


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
        """Give back what the request held; the slot is not used again."""
        ...

    def length(self, slot: Slot) -> int:
        """Committed tokens."""
        ...

    def prefill(self, slot: Slot, token_ids: torch.Tensor, total: int | None = None) -> Pass:
        """Append and commit a chunk of a prompt of `total` tokens (with None, it ends here);
        logits are those of the chunk's last token only."""
        ...

    def verify(self, slots: Sequence[Slot], blocks: Sequence[torch.Tensor]) -> Pass:
        """Run each block after its request's committed tokens, without committing any."""
        ...

    def commit(self, slots: Sequence[Slot], num_kept: Sequence[int]) -> None:
        """Keep the first rows of the last verified blocks and take the rest back."""
        ...

    def truncate(self, slot: Slot, length: int, total: int | None = None) -> bool:
        """Forget committed tokens from `length` on; False where the cache cannot do that, or
        where a prompt of `total` tokens would have filled it otherwise."""
        ...


@runtime_checkable
class DeviceTarget(Target, Protocol):
    """A target whose rounds the device can lead: nothing of a pass has to be known to the host."""

    tap_layers: tuple[int, ...]

    def paged_cache(self) -> PagedCache | None:
        """Its cache where that is one of pages; only then can the device lead."""
        ...

    def run(self, token_ids: torch.Tensor, rows: CachePass) -> Pass:
        """As `verify`, of all rows [N] of a pass whose numbers are on the device."""
        ...
