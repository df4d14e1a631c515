"""What DFlash 2 and Domino add to a drafted block: filters, a choice of candidates, a GRU."""

from dataclasses import replace

import pytest
import torch

from dspark_kernels.block_filter import filter_blocks, filter_blocks_reference
from dspark_kernels.candidate_block import CandidateHead, candidate_block, walk_reference
from dspark_kernels.gru_head import GruHead, gru_block, gru_block_reference, gru_state
from dspark_kernels.quantized_weight import quantize_int8
from tests.kernels.closeness import assert_near

REQUESTS, STEPS, HIDDEN, TOKENS = 3, 3, 24, 70
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def normal(device, dtype, *shape):
    return (torch.randn(*shape, device=device) * 0.5).to(dtype)


def drawn(device):
    """Anchors, temperatures, seeds, positions."""
    anchors = torch.tensor([0, TOKENS - 1, 5], device=device)
    temperatures = torch.tensor([0.0, 1.0, 0.6], device=device)
    seeds = torch.tensor([1, -7, 2**40 + 3], device=device)
    return anchors, temperatures, seeds, torch.tensor([0, 4097, 12], device=device)


def check_block(block, given, head, others, expected):
    """As the plain steps, and a request alone drafts the same, bit for bit."""
    anchors, *rest = others
    drafted = block(*given, anchors, head, *rest)
    assert drafted.token_ids.tolist() == expected.token_ids.tolist()
    # minus infinity stays exactly that
    finite = expected.logits.isfinite()
    assert torch.equal(finite, drafted.logits.isfinite())
    assert_near(drafted.logits[finite], expected.logits[finite], 4e-3)
    assert_near(drafted.log_sums, expected.log_sums, 4e-3)
    for r in range(REQUESTS):
        one = [t[r : r + 1] for t in given]
        alone = block(*one, anchors[r : r + 1], head, *(t[r : r + 1] for t in rest))
        assert torch.equal(alone.token_ids[0], drafted.token_ids[r])
        assert torch.equal(alone.logits[0], drafted.logits[r])


@DTYPES
@pytest.mark.parametrize("side", [0, 1])
def test_a_filter_is_its_reference(device, dtype, side):
    rows, taps, groups = 4, 3, 6
    x = normal(device, dtype, 3 * rows, HIDDEN)
    delta = normal(device, dtype, 3 * rows, 2 * taps * groups)
    base = normal(device, dtype, 2, taps, HIDDEN)
    given = (x, delta, base, side, rows)
    assert_near(filter_blocks(*given), filter_blocks_reference(*given))


@DTYPES
@pytest.mark.parametrize("count", [6, 16])
def test_candidates_are_chosen_as_by_the_plain_steps(device, dtype, count):
    head = CandidateHead(
        normal(device, dtype, 8, HIDDEN),
        normal(device, dtype, TOKENS, 8),
        normal(device, dtype, TOKENS, 8),
        count,
    )
    # all different, so that the likeliest few are the same wherever they are sorted
    logits = torch.stack([torch.randperm(TOKENS) for _ in range(REQUESTS * STEPS)]) * 0.25
    logits = logits.view(REQUESTS, STEPS, TOKENS).to(device, dtype)
    hidden = normal(device, dtype, REQUESTS, STEPS, HIDDEN)
    unary, candidates = logits.topk(count, dim=-1)
    projected = (hidden.float() @ head.hidden_projection.float().t()).to(dtype)
    expected = walk_reference(unary, candidates, projected, head, *drawn(device))
    check_block(candidate_block, (logits, hidden), head, drawn(device), expected)
    assert (expected.logits.isfinite().sum(-1) == count).all()


def gru_head(device, dtype, rank=10, width=12):
    return GruHead(
        embedding=normal(device, dtype, TOKENS, HIDDEN),
        of_token=normal(device, dtype, 3 * width, HIDDEN),
        of_state=normal(device, dtype, 3 * width, width),
        projector_of_hidden=normal(device, dtype, rank, HIDDEN),
        projector_of_state=normal(device, dtype, rank, width),
        w2=normal(device, dtype, TOKENS, rank),
        prefix_length=1,
    )


@pytest.mark.parametrize("is_coded", [False, True])
def test_domino_chooses_as_by_the_plain_steps(device, is_coded):
    head = gru_head(device, torch.float32)
    if is_coded and isinstance(head.w2, torch.Tensor):
        head = replace(head, w2=quantize_int8(head.w2))
    base = normal(device, torch.float32, REQUESTS, STEPS, TOKENS)
    hidden = normal(device, torch.float32, REQUESTS, STEPS, HIDDEN)
    anchors, *rest = drawn(device)
    expected = gru_block_reference(base, hidden, anchors, head, *rest)
    check_block(gru_block, (base, hidden), head, drawn(device), expected)


def test_a_state_is_the_one_of_torchs_gru(device):
    torch.manual_seed(5)
    cell = torch.nn.GRUCell(HIDDEN, 12, bias=False).to(device).requires_grad_(False)
    x, state = normal(device, torch.float32, 3, HIDDEN), normal(device, torch.float32, 3, 12)
    ours = gru_state(x @ cell.weight_ih.t(), state @ cell.weight_hh.t(), state)
    assert_near(ours, cell(x, state))
