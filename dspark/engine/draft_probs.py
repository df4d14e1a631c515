"""The target's probabilities of drafts, where a request asks for them."""

from collections.abc import Sequence

import torch

from dspark.engine.request import ActiveRequest


def target_probs(
    active: ActiveRequest, logits: torch.Tensor, draft_ids: Sequence[int]
) -> tuple[float, ...] | None:
    """logits [1 + K, V] of the rows that were checked -> the probability of each of the first K
    drafts, as the request samples, before penalties, biases and a grammar. None unless asked for,
    or without drafts."""
    if not (active.request.tells_probs and draft_ids):
        return None
    pairs = zip(logits[:-1], draft_ids, strict=False)
    return tuple(active.sampler.probability(row, token_id) for row, token_id in pairs)
