"""Log-probabilities of chosen tokens, where a request asks for them."""

from collections.abc import Sequence

import torch

from dspark.engine.request import Request
from dspark.events import TokenLogprobs


def token_logprobs(
    request: Request, logits: torch.Tensor, token_ids: Sequence[int]
) -> tuple[TokenLogprobs, ...] | None:
    """logits [>= N, V] of the target, from which N tokens were chosen; row by row, so that no
    other row decides a bit. None unless asked for."""
    count = request.num_logprobs
    if count is None:
        return None
    told = []
    for row, token_id in zip(logits, token_ids, strict=False):
        known = row.float().log_softmax(dim=0)
        best = known.topk(min(count, len(known)))
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        told.append(TokenLogprobs(float(known[token_id]), tuple(top)))
    return tuple(told)
