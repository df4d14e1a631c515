"""What takes a failed kernel's place under a capture gives what the operation's reference gives."""

import pytest
import torch

from benchmarks.gpu import ROOT  # noqa: F401  which makes gpu_parts known
from dspark_kernels import Filters, Races
from dspark_kernels.accept_block import accept_block_reference
from dspark_kernels.norm_rope_write import norm_rope_write
from dspark_kernels.paged_attention import paged_attention
from dspark_kernels.paged_cache import PAGE, PagedRows


@pytest.mark.parametrize("causal", [True, False])
def test_attention_over_the_pages_that_were_just_written(causal, monkeypatch):
    from gpu_parts.stand_ins import use_stand_ins

    rows = PagedRows(
        slots=torch.tensor([2, 0], dtype=torch.int32),
        starts=torch.tensor([PAGE - 1, 5], dtype=torch.int32),
        row_starts=torch.tensor([0, 3, 6], dtype=torch.int32),
        max_rows=3,
        num_pages=2,
        causal=causal,
    )
    tables = torch.tensor([[3, 4], [0, 0], [1, 2]], dtype=torch.int32)
    qkv, pool = torch.randn(6, 4 + 2 * 2, 16), torch.randn(2, 5, 2, PAGE, 16)

    def attend() -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = pool.clone()
        query = norm_rope_write(qkv, keys, values, tables, rows, None, None)
        return keys, paged_attention(query, keys, values, tables, rows, 0.25)

    wanted_keys, wanted = attend()
    use_stand_ins(("norm_rope_write", "paged_attention"), lambda: True, monkeypatch.setattr)
    refuse = lambda *_: pytest.fail("a capture forbids what reads on the host")  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "tolist", refuse)
    monkeypatch.setattr(torch.Tensor, "item", refuse)
    keys, out = attend()
    assert torch.equal(keys, wanted_keys)
    torch.testing.assert_close(out, wanted)


def test_greedy_acceptance(monkeypatch):
    from gpu_parts.stand_ins import use_stand_ins

    logits = torch.randn(4 + 2 + 4, 11)
    first_rows, counts = torch.tensor([0, 4, 6]), torch.tensor([3, 1, 3])
    choices = logits.argmax(-1)
    drafts = torch.stack([choices[0:3], choices[4:7], choices[6:9]])
    drafts[2, 1] += 1
    none = torch.zeros(3, dtype=torch.int64)
    given = (
        drafts, torch.zeros(3, 3, 11), torch.zeros(3, 3), logits, first_rows, counts,
        Filters(torch.zeros(3), none.int(), torch.ones(3)), Races(none.bool(), none),
        torch.zeros(3, 4), torch.tensor([7, 8, 9]),
    )  # fmt: skip
    wanted = accept_block_reference(*given)
    use_stand_ins(("accept_block",), lambda: True, monkeypatch.setattr)
    from dspark_kernels.accept_block import accept_block

    found = accept_block(*given)
    assert wanted.num_accepted.tolist() == [3, 1, 1]
    for name in ("num_accepted", "next_ids", "lengths"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))
    for count, ours, theirs in zip(wanted.num_accepted, found.tokens, wanted.tokens, strict=True):
        assert torch.equal(ours[: count + 1], theirs[: count + 1])


def test_kernels_that_raised_are_replaced():
    from gpu_parts.stand_ins import failed_modules

    records = [
        {"kernel": "attention of a block", "ok": False, "error": "no"},
        {"kernel": "norm, rope, write", "ok": False, "error": "no"},
        {"kernel": "sequential head rnn", "ok": False},
        {"program": "ncu", "error": "no"},
    ]
    assert failed_modules(records) == {"paged_attention", "norm_rope_write"}


def test_a_round_of_greedy_requests_is_planned_and_ended(monkeypatch):
    from gpu_parts.stand_ins import use_stand_ins

    from dspark_kernels import AcceptedBlock
    from dspark_kernels.round_state import LaneState, end_round, plan_round

    def state() -> LaneState:
        numbers = torch.tensor([[5, 6], [9, 30], [1, 2], [3, 4]])
        return LaneState(*numbers, torch.tensor([True, False]), torch.ones(2).bool(), most)

    most, ids = torch.tensor([3, 3]), torch.arange(6).view(2, 3)
    calibration = torch.tensor([[[0.0] * 3, [1.0] * 3]] * 2)

    def run(state: LaneState) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.tensor([[2.0, -2.0, 2.0], [2.0, 2.0, 2.0]])
        plan = plan_round(logits, calibration, torch.zeros(2), state, 3, 3, 100, 0.5)
        kept = torch.tensor([1, 2])
        accepted = AcceptedBlock(kept, kept + 7, state.lengths + kept + 1, ids)
        return plan.num_drafts, end_round(accepted, ids, plan, state)

    before, after = state(), state()
    wanted = run(before)
    assert wanted[0].tolist() == [1, 3]
    use_stand_ins(("round_state",), lambda: True, monkeypatch.setattr)
    refuse = lambda *_: pytest.fail("a capture forbids what reads on the host")  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "tolist", refuse)
        patched.setattr(torch.Tensor, "item", refuse)
        found = run(after)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(after, before, strict=True))
