"""How much each drafted position counts in the loss: by its place alone, or by how far the head
already gets (D-PACE, arXiv 2605.18810)."""

import torch


def by_place(positions: torch.Tensor, decay: float) -> torch.Tensor:
    """exp(-position / decay)."""
    return torch.exp(-positions / decay)


def by_confidence(
    cross_entropy: torch.Tensor,
    blocks: torch.Tensor,
    positions: torch.Tensor,
    block_size: int,
    floor: float,
) -> torch.Tensor:
    """D-PACE's weights [R] of rows in blocks, from the cross-entropy [R] of their labels.

    With q = (1 - floor) · exp(-CE) + floor, position j counts Σ_(m ≥ j) Π_(i ≤ m) q_i: the drafts
    that its improvement would add. A block's rows are its first ones. Without gradient.
    """
    chances = (1.0 - floor) * torch.exp(-cross_entropy.detach()) + floor
    num_blocks = int(blocks.max()) + 1
    reached = chances.new_ones(num_blocks, block_size)
    reached[blocks, positions] = chances
    is_row = torch.zeros_like(reached)
    is_row[blocks, positions] = 1.0
    reached = reached.cumprod(dim=1) * is_row
    return reached.flip(1).cumsum(dim=1).flip(1)[blocks, positions]
