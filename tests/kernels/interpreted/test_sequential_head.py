"""A drafted block against the plain steps of the three heads, greedy and sampled."""

from dataclasses import replace

import pytest
import torch

from dspark_kernels.noise import gumbel_reference
from dspark_kernels.quantized_weight import quantize_int8
from dspark_kernels.sequential_head import SequentialHead, draft_block, draft_block_reference
from tests.kernels.closeness import assert_near

REQUESTS, STEPS, HIDDEN, RANK = 3, 4, 24, 10


def make_head(kind, num_tokens, reads_token, dtype, device):
    def normal(*shape):
        return (torch.randn(*shape, device=device) * 0.5).to(dtype)

    gates = {"gated": (RANK, HIDDEN + RANK), "rnn": (3 * RANK, 2 * RANK + HIDDEN)}.get(kind)
    has_markov = kind != "none"
    return SequentialHead(
        kind,
        w1=normal(num_tokens, RANK) if has_markov else None,
        w2=normal(num_tokens, RANK) if has_markov else None,
        gate_weight=normal(*gates) if gates else None,
        gate_bias=normal(gates[0]) if gates else None,
        confidence_weight=normal(1, HIDDEN + (RANK if reads_token else 0)),
        confidence_bias=normal(1),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "num_tokens", "is_coded"),
    [
        *[("none", 63, False), ("vanilla", 63, False), ("gated", 130, False), ("rnn", 97, False)],
        ("vanilla", 70, True),
    ],
)
def test_a_block_is_that_of_the_plain_steps(device, dtype, kind, num_tokens, is_coded):
    head = make_head(kind, num_tokens, kind != "none", dtype, device)
    if is_coded and isinstance(head.w2, torch.Tensor):
        head = replace(head, w2=quantize_int8(head.w2))
    base = torch.randn(REQUESTS, STEPS, num_tokens, device=device).to(dtype)
    hidden = torch.randn(REQUESTS, STEPS, HIDDEN, device=device).to(dtype)
    anchors = torch.tensor([0, num_tokens - 1, 5], device=device)
    temperatures = torch.tensor([0.0, 1.0, 0.6], device=device)
    seeds = torch.tensor([1, -7, 2**40 + 3], device=device)
    positions = torch.tensor([0, 4097, 12], device=device)
    given = (base, hidden, anchors, head, temperatures, seeds, positions)
    drafted, expected = draft_block(*given), draft_block_reference(*given)
    assert drafted.token_ids.tolist() == expected.token_ids.tolist()
    bound = None if dtype == torch.float32 else 4e-3  # what a gate read from the hidden state loses
    assert_near(drafted.logits, expected.logits, bound)
    assert_near(drafted.log_sums, expected.log_sums, bound)
    assert_near(drafted.confidence_logits, expected.confidence_logits, bound)
    # a request alone drafts the same, bit for bit
    for r in range(REQUESTS):
        one = [t[r : r + 1] for t in (base, hidden, anchors)]
        rest = [t[r : r + 1] for t in (temperatures, seeds, positions)]
        alone = draft_block(*one, head, *rest)
        assert torch.equal(alone.token_ids[0], drafted.token_ids[r])
        assert torch.equal(alone.logits[0], drafted.logits[r])


def test_logits_that_are_no_numbers_draft_a_token_of_the_vocabulary(device):
    """Of which the next step reads a row: far beyond the table on a card."""
    head = make_head("vanilla", 63, True, torch.float32, device)
    base = torch.full((1, STEPS, 63), float("nan"), device=device)
    hidden = torch.randn(1, STEPS, HIDDEN, device=device)
    zeros = torch.zeros(1, dtype=torch.int64, device=device)
    drafted = draft_block(base, hidden, zeros, head, zeros.float(), zeros, zeros)
    assert drafted.token_ids.min() >= 0 and drafted.token_ids.max() < 63


def test_gumbel_noise_draws_what_the_logits_say():
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    num_draws = 20000
    noise = gumbel_reference(torch.full((num_draws,), 9), torch.arange(num_draws), 4)
    counts = (probs.log() + noise).argmax(-1).bincount(minlength=4)
    chi2 = ((counts - num_draws * probs) ** 2 / (num_draws * probs)).sum()
    assert chi2 < 16.3  # exceeded by one correct sampler in a thousand; the draws are fixed
