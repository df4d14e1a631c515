"""A round's plan and its end against torch, and the numbers of its tests against the host's."""

import math

import pytest
import torch

from dspark_kernels.accept_block import AcceptedBlock
from dspark_kernels.noise import uniform_reference
from dspark_kernels.round_state import (
    LaneState,
    RoundPlan,
    end_round,
    end_round_reference,
    plan_round,
    plan_round_reference,
)
from tests.kernels.closeness import assert_near

LANES, SLOTS, LONGEST = 4, 3, 4100


def make_state(device) -> LaneState:
    """The second lane has a seed, the third is near its context's end, the last idles."""
    state = LaneState(
        anchors=torch.tensor([5, 6, 7, 8]),
        lengths=torch.tensor([0, 9, LONGEST - 3, 2]),
        noise_seeds=torch.tensor([3, -5, 2**62, -(2**63)]),
        seeds=torch.tensor([11, -5, 2**63 - 1, 0]),
        is_seeded=torch.tensor([False, True, False, False]),
        is_live=torch.tensor([True, True, True, False]),
        most_drafts=torch.tensor([SLOTS, SLOTS, SLOTS, 0]),
    )
    return LaneState(*(tensor.to(device) for tensor in state))


@pytest.mark.parametrize("slots", [1, 3, 9])
@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("is_confident", [False, True])
def test_a_plan(device, slots, threshold, is_confident):
    state = make_state(device)
    logits = 2 * torch.randn(LANES, slots, device=device) if is_confident else None
    calibration = 0.5 + torch.rand(2, 2, slots, device=device) if is_confident else None
    temperatures = torch.tensor([0.0, 0.8, 0.0, 1.0], device=device)
    given = (logits, calibration, temperatures, state, slots, min(slots, SLOTS), LONGEST, threshold)
    found, wanted = plan_round(*given), plan_round_reference(*given)
    assert found.num_drafts.tolist() == wanted.num_drafts.tolist()
    assert found.num_drafts[2] <= 2 and found.num_drafts[3] == 0
    assert_near(found.confidences, wanted.confidences)
    if logits is not None and calibration is not None:
        for row, temperature in enumerate(temperatures.tolist()):
            own = calibration[int(temperature == 0)].tolist()
            numbers = zip(logits[row].tolist(), *own, strict=True)
            expected = [1 / (1 + math.exp(-(z + shift) / divisor)) for z, shift, divisor in numbers]
            assert found.confidences[row].tolist() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(found.uniforms, wanted.uniforms)
    numbers = uniform_reference(state.noise_seeds, state.lengths, slots + 1)
    assert torch.equal(found.uniforms, numbers)
    assert (numbers >= 0).all() and (numbers < 1).all()


def test_a_confidence_that_is_no_number_is_not_sure(device):
    logits = torch.tensor([[3.0, float("nan"), 3.0]] * LANES, device=device)
    table = torch.tensor([[[0.0] * SLOTS, [1.0] * SLOTS]] * 2, device=device)
    greedy = torch.zeros(LANES, device=device)
    found = plan_round(logits, table, greedy, make_state(device), SLOTS, SLOTS, LONGEST, 0.5)
    assert found.num_drafts.tolist() == [1, 1, 1, 0]


def test_the_end_of_a_round_moves_live_requests_on(device):
    state, expected = make_state(device), make_state(device)
    accepted = AcceptedBlock(
        torch.tensor([2, 0, -1, 0], device=device),
        torch.tensor([41, 42, 43, 44], device=device),
        state.lengths + 3,
        torch.zeros(LANES, SLOTS + 1, dtype=torch.int64, device=device),
    )
    ids = torch.arange(LANES * SLOTS, device=device).view(LANES, SLOTS) + 150_000
    plan = RoundPlan(
        torch.tensor([3, 1, 2, 0], device=device),
        torch.rand(LANES, SLOTS, device=device),
        torch.rand(LANES, SLOTS + 1, device=device),
    )
    found = end_round(accepted, ids, plan, state)
    assert torch.equal(found, end_round_reference(accepted, ids, plan, expected))
    assert all(map(torch.equal, state, expected))
    assert state.anchors.tolist() == [41, 42, 43, 8]
    assert state.lengths[3] == 2 and state.noise_seeds[1] == -5
    assert found[:, 3 + SLOTS :].view(torch.float32).tolist() == plan.confidences.tolist()
    # no two rounds of a request without a seed draw alike
    again = accepted._replace(lengths=state.lengths + 1)
    before = state.noise_seeds.clone()
    end_round(again, ids, plan, state)
    assert (state.noise_seeds != before).tolist() == [True, False, True, False]
