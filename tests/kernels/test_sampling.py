"""Filters of a distribution, against definitions that take no short cut."""

import pytest
import torch

from dspark_kernels.sampling import kept


def nucleus_by_sorting_all(scores, top_p):
    probs = scores.softmax(dim=-1)
    ordered = probs.sort(dim=-1, descending=True).values
    mass_before = ordered.cumsum(dim=-1) - ordered
    num_kept = (mass_before < top_p).sum(dim=-1, keepdim=True).clamp_(min=1)
    return scores.masked_fill(probs < ordered.gather(-1, num_kept - 1), float("-inf"))


@pytest.mark.parametrize("top_p", [1e-9, 0.5, 0.9, 0.999, 1 - 1e-7])
@pytest.mark.parametrize("num_tokens", [1, 2, 400, 9000])
def test_the_nucleus_is_that_of_all_tokens_in_order(num_tokens, top_p):
    generator = torch.Generator().manual_seed(num_tokens)
    for scale in (0.0, 0.1, 1.0, 4.0, 20.0):
        logits = torch.randn(2, 2, num_tokens, generator=generator) * scale
        logits[0] = logits[0].round()  # equal ones
        logits[1, 0, num_tokens // 2 :] = float("-inf") if num_tokens > 1 else 0.0
        for rows in (logits, logits[0, 0]):
            scores = kept(rows, 0.7)
            assert torch.equal(kept(rows, 0.7, 0, top_p), nucleus_by_sorting_all(scores, top_p))


def test_a_nucleus_of_no_distribution_raises_nothing():
    logits = torch.zeros(2, 9)
    logits[1, 3] = float("nan")
    found = kept(logits, 1.0, 0, 0.5)
    assert found[0].isfinite().all() and found[1].isnan().all()
