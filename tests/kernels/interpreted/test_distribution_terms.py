"""Terms and gradient of the loss against float64 autograd."""

import pytest
import torch
import torch.nn.functional as F

from dspark_kernels.distribution_terms import TermWeights, distribution_terms
from tests.kernels.closeness import assert_near

NUM_POSITIONS = 4
TARGET_ROWS = [0, 0, 2, 3, 3]
WEIGHTS = [
    TermWeights(0.1, 0.9, 0.0),
    TermWeights(0.3, 0.5, 0.7),
    TermWeights(0.1, 0.0, 0.0, nla=0.9),
    TermWeights(0.1, 0.2, 0.0, lk=0.8),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("num_tokens", [1, 63, 4100])
def test_terms_and_gradient(device, dtype, weights, num_tokens):
    target_rows = torch.tensor(TARGET_ROWS, device=device)
    num_rows = len(target_rows)
    target_logits = (2 * torch.randn(NUM_POSITIONS, num_tokens, device=device)).to(dtype)
    draft_logits = (2 * torch.randn(num_rows, num_tokens, device=device)).to(dtype)
    labels = torch.randint(num_tokens, (num_rows,), device=device)
    row_weights = torch.rand(num_rows, device=device)

    wide = draft_logits.double().requires_grad_()
    target = target_logits.double().softmax(-1)[target_rows]
    cross_entropy = F.cross_entropy(wide, labels, reduction="none")
    l1 = (wide.softmax(-1) - target).abs().sum(-1)
    soft = -(target * wide.log_softmax(-1)).sum(-1)
    per_row = weights.cross_entropy * cross_entropy + weights.l1 * l1 + weights.distillation * soft
    shared = 1.0 - 0.5 * l1
    share = torch.exp(-3.0 * shared.detach())
    per_row = per_row - weights.nla * shared.log()
    per_row = per_row + weights.lk * (share * soft + (1.0 - share) * (1.0 - shared))
    (row_weights * per_row).sum().backward()

    given = (
        target_logits,
        target_rows,
        labels,
        row_weights,
        weights,
        torch.empty_like(draft_logits),
    )
    before = draft_logits.clone()
    only_terms = distribution_terms(draft_logits, *given, has_gradient=False)
    assert torch.equal(draft_logits, before)
    terms = distribution_terms(draft_logits, *given)
    for found in (only_terms, terms):
        # sums of 4,100 float32 terms that cancel where one token has all the mass
        bound = 1e-5
        if num_tokens > 1:
            assert_near(found.cross_entropy, cross_entropy.detach(), bound)
        assert_near(found.accept_rate, 1.0 - 0.5 * l1.detach(), bound)
        if weights.distillation and num_tokens > 1:
            assert_near(found.distillation, soft.detach(), bound)
    if num_tokens > 1:
        assert_near(draft_logits, wide.grad, 1e-5 if dtype == torch.float32 else None)
    else:
        assert draft_logits.abs().max() < 1e-6
