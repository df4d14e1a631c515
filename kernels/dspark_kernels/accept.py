"""The drafted tokens that the target accepts, and the token after them: greedy or rejection
sampling (Leviathan et al. 2023, Chen et al. 2023)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dspark_kernels.sampling import draw


class Acceptance(NamedTuple):
    """num_accepted drafts are kept; next_id is the correction, or the bonus after all of them."""

    num_accepted: int
    next_id: int


def accept_greedy(draft_ids: torch.Tensor, target_logits: torch.Tensor) -> Acceptance:
    """draft_ids [K], target_logits [K + 1, V]: keep while the draft is the target's argmax."""
    return accept_chosen(draft_ids.tolist(), target_logits.argmax(dim=-1).tolist())


def accept_chosen(draft_ids: Sequence[int], chosen: Sequence[int]) -> Acceptance:
    """K drafts, and K + 1 tokens that the target chose: keep while they are the same."""
    for k, (draft, token) in enumerate(zip(draft_ids, chosen, strict=False)):
        if draft != token:
            return Acceptance(k, token)
    return Acceptance(len(draft_ids), chosen[len(draft_ids)])


def accept_sampled(
    draft_ids: torch.Tensor,
    draft_probs: torch.Tensor,
    target_probs: torch.Tensor,
    generator: torch.Generator,
) -> Acceptance:
    """draft_ids [K], draft_probs [>= K, V], target_probs [K + 1, V]; both already processed alike.

    Keeps x with probability min(1, p_target(x) / p_draft(x)); at the first rejection draws from
    max(p_target - p_draft, 0), normalised, so that the output follows the target exactly.
    """
    for k, token in enumerate(draft_ids.tolist()):
        threshold = float(torch.rand((), generator=generator, dtype=torch.float64))
        if threshold * float(draft_probs[k, token]) >= float(target_probs[k, token]):
            residual = (target_probs[k] - draft_probs[k]).clamp_(min=0.0)
            if not bool(residual.any()):
                residual = target_probs[k]
            return Acceptance(k, draw(residual, generator))
    return Acceptance(len(draft_ids), draw(target_probs[len(draft_ids)], generator))
