"""The supervised positions of a batch as flat rows, for every algorithm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dspark.drafters.training_blocks import Blocks
from dspark.graft.train.loss import RowTerms


@dataclass(frozen=True, slots=True)
class Rows:
    """R supervised positions, ordered by the target row they are compared with."""

    hidden: torch.Tensor  # [R, H]
    features: torch.Tensor | None  # [R, r]
    confidence: torch.Tensor | None  # [R] logits
    target_hidden: torch.Tensor  # [P, H]
    target_rows: torch.Tensor  # [R]
    labels: torch.Tensor  # [R]
    previous: torch.Tensor  # [R], the token before each label
    positions: torch.Tensor  # [R], of each row in its block
    blocks: torch.Tensor  # [R], index of the row's block in the batch
    num_blocks: int


def supervised_rows(
    blocks: Blocks,
    target_hidden: torch.Tensor,
    hidden: torch.Tensor,
    features: torch.Tensor | None = None,
    confidence: torch.Tensor | None = None,
) -> Rows:
    """Of one sequence: hidden [A, K, H], features [A, K, r], confidence [A, K]; target_hidden
    [S, H]."""
    rows = blocks.supervised.flatten().nonzero().squeeze(1)
    rows = rows[blocks.positions.flatten()[rows].argsort(stable=True)]
    targets, target_rows = blocks.positions.flatten()[rows].unique(return_inverse=True)
    return Rows(
        hidden=hidden.flatten(0, 1)[rows].float(),
        features=None if features is None else features.flatten(0, 1)[rows].float(),
        confidence=None if confidence is None else confidence.flatten()[rows],
        target_hidden=target_hidden[targets],
        target_rows=target_rows,
        labels=blocks.labels.flatten()[rows],
        previous=blocks.previous.flatten()[rows],
        positions=rows % blocks.block_size,
        blocks=rows // blocks.block_size,
        num_blocks=len(blocks.anchors),
    )


def join(parts: Sequence[Rows]) -> Rows:
    """One batch out of its sequences; target rows and blocks are numbered through."""
    rows, blocks = 0, 0
    target_rows, block_ids = [], []
    for part in parts:
        target_rows.append(part.target_rows + rows)
        block_ids.append(part.blocks + blocks)
        rows += len(part.target_hidden)
        blocks += part.num_blocks
    return Rows(
        hidden=torch.cat([part.hidden for part in parts]),
        features=_cat([part.features for part in parts]),
        confidence=_cat([part.confidence for part in parts]),
        target_hidden=torch.cat([part.target_hidden for part in parts]),
        target_rows=torch.cat(target_rows),
        labels=torch.cat([part.labels for part in parts]),
        previous=torch.cat([part.previous for part in parts]),
        positions=torch.cat([part.positions for part in parts]),
        blocks=torch.cat(block_ids),
        num_blocks=blocks,
    )


def _cat(tensors: list[torch.Tensor | None]) -> torch.Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None


def row_sums(
    rows: Rows, terms: RowTerms, weights: torch.Tensor, losses: torch.Tensor, block_size: int
) -> torch.Tensor:
    """Sums that `figures` reads, in float64; sums of parts add up to those of the batch.

    losses [2] of loss and confidence, the other three terms, blocks, tokens expected to be
    accepted, and by position the accepted share and the rows.
    """
    rates = terms.accept_rate.new_zeros(rows.num_blocks, block_size)
    rates[rows.blocks, rows.positions] = terms.accept_rate
    by_row = (terms.cross_entropy, 2.0 * (1.0 - terms.accept_rate), terms.distillation)
    return torch.cat(
        [
            losses.double(),
            torch.stack([term @ weights for term in by_row]).double(),
            losses.new_tensor([rows.num_blocks]).double(),
            rates.cumprod(dim=1).sum(dtype=torch.float64).unsqueeze(0),
            rates.sum(dim=0, dtype=torch.float64),
            torch.bincount(rows.positions, minlength=block_size).double(),
        ]
    )


def figures(sums: torch.Tensor) -> dict[str, Any]:
    """tau: the target's own token plus the expected number of accepted drafts."""
    loss, confidence, cross_entropy, l1, distillation, num_blocks, num_accepted, *by_position = (
        sums.tolist()
    )
    half = len(by_position) // 2
    rates, counts = by_position[:half], by_position[half:]
    return {
        "loss": loss,
        "cross_entropy": cross_entropy,
        "l1": l1,
        "distillation": distillation,
        "confidence": confidence,
        "positions": int(sum(counts)),
        "tau": 1.0 + num_accepted / num_blocks,
        "acceptance_by_position": tuple(
            rate / max(count, 1.0) for rate, count in zip(rates, counts, strict=True)
        ),
    }
