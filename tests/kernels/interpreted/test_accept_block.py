"""Acceptance on the device: the same numbers in, the same tokens out."""

import sys

import pytest
import torch

from dspark_kernels.accept import accept_sampled
from dspark_kernels.accept_block import Filters, Races, accept_block, accept_block_reference
from dspark_kernels.noise import gumbel_row
from dspark_kernels.sampling import kept as kept_scores
from dspark_kernels.sampling import probabilities

REQUESTS, SLOTS = 5, 3
FILTERS = [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.8), (0.9, 40, 0.6)]


def make_round(device, dtype, num_tokens, seed, seeded=()):
    """Drafts near the target, so that some are kept; one request each of FILTERS."""
    generator = torch.Generator().manual_seed(seed)
    num_drafts = torch.tensor([3, 0, 2, 3, 1])
    target = 3 * torch.randn(REQUESTS, SLOTS + 1, num_tokens, generator=generator)
    draft = target[:, :-1] + 0.3 * torch.randn(REQUESTS, SLOTS, num_tokens, generator=generator)
    temperature, top_k, top_p = (torch.tensor(column) for column in zip(*FILTERS, strict=True))
    scaled = draft / torch.where(temperature == 0, 1.0, temperature)[:, None, None]
    ids = torch.stack(
        [rows.softmax(-1).multinomial(1, generator=generator)[:, 0] for rows in scaled]
    )
    ids[0] = target[0, :-1].to(dtype).argmax(-1)
    ids[0, 2] = 1
    first_rows = torch.cat([torch.zeros(1, dtype=torch.int64), (num_drafts + 1).cumsum(0)[:-1]])
    rows = torch.cat([t[: n + 1] for t, n in zip(target, num_drafts.tolist(), strict=True)])
    is_seeded = torch.tensor([r in seeded for r in range(REQUESTS)])
    seeds = torch.tensor([0, -(2**63), 2**63 - 1, -7, 2**40 + seed])
    given = (
        ids,
        draft,
        scaled.logsumexp(-1),
        rows.to(dtype),
        first_rows,
        num_drafts,
        Filters(temperature, top_k.int(), top_p),
        Races(is_seeded, seeds),
        torch.rand(REQUESTS, SLOTS + 1, generator=generator),
        torch.tensor([7, 0, 12, 4096, 1]),
    )
    return [
        t.to(device) if isinstance(t, torch.Tensor) else type(t)(*(part.to(device) for part in t))
        for t in given
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_tokens", "seeded"), [(63, ()), (130, ()), (63, (1, 2, 3, 4)), (130, (2, 3))]
)
def test_the_same_numbers_choose_the_same_tokens(device, dtype, num_tokens, seeded):
    seen = set()
    for seed in range(3):
        given = make_round(device, dtype, num_tokens, seed, seeded)
        result, expected = accept_block(*given), accept_block_reference(*given)
        for name in ("num_accepted", "next_ids", "lengths"):
            assert getattr(result, name).tolist() == getattr(expected, name).tolist(), name
        for row, wanted, kept in zip(*result[3:], *expected[3:], result.num_accepted, strict=True):
            assert row[: kept + 1].tolist() == wanted[: kept + 1].tolist()
        seen.update(result.num_accepted.tolist())
    assert len(seen) >= 3  # refused at once, later, and never


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_a_row_are_one_row(device, dtype, monkeypatch, backwards):
    """Whoever arrives last finishes it; of equal logits the first counts, in whatever part."""
    given = make_round(device, dtype, 300, 3)
    given[3][:, [70, 150, 299]] = 20.0  # three parts
    whole = accept_block(*given)
    module = sys.modules[accept_block.__module__]
    monkeypatch.setattr(module, "ROW_SPAN", 128)
    monkeypatch.setattr(module, "BLOCK_ROW", 64)
    in_parts = accept_block(*given)
    expected = accept_block_reference(*given)
    backwards()
    for result in (whole, in_parts, accept_block(*given)):
        assert result.next_ids.tolist() == expected.next_ids.tolist()
        assert result.num_accepted.tolist() == expected.num_accepted.tolist()
    given[3][:, 299] = float("nan")
    assert accept_block(*given).num_accepted.tolist() == [-1] * REQUESTS


def test_the_reference_is_the_engines_rule():
    given = make_round("cpu", torch.float32, 63, 5)
    ids, draft, log_sums, rows, first_rows, num_drafts, filters, races, _, lengths = given
    for r in range(1, REQUESTS):
        count, first = int(num_drafts[r]), int(first_rows[r])
        temperature, top_k, top_p = (f[r].item() for f in filters)
        target_probs = probabilities(rows[first : first + count + 1], temperature, top_k, top_p)
        draft_probs = (draft[r] / temperature - log_sums[r, :, None]).exp()
        for seed in range(20):
            wanted = accept_sampled(
                ids[r, :count], draft_probs, target_probs, torch.Generator().manual_seed(seed)
            )
            drawn = torch.rand(
                SLOTS + 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
            uniforms = drawn[None, : SLOTS + 1].clone().expand(REQUESTS, -1).clone()
            # the engine's generator goes on to the next number once a draft is refused
            uniforms[:, -1] = drawn[min(wanted.num_accepted + 1, count)]
            result = accept_block_reference(
                ids,
                draft,
                log_sums,
                rows,
                first_rows,
                num_drafts,
                filters,
                races,
                uniforms,
                lengths,
            )
            assert (int(result.num_accepted[r]), int(result.next_ids[r])) == tuple(wanted)


def test_a_request_with_a_seed_takes_what_its_noise_makes_largest(device):
    """Of each row, by place; a draft is kept where it is that token; no uniform number counts."""
    given = make_round(device, torch.float32, 130, 1, seeded=(1, 2, 3, 4))
    ids, *_, rows, first_rows, num_drafts, filters, races, _, lengths = given
    wanted = {}
    for r in range(1, REQUESTS):
        first, count = int(first_rows[r]), int(num_drafts[r])
        settings = (float(filters.temperature[r]), int(filters.top_k[r]), float(filters.top_p[r]))
        for k in range(count + 1):
            noise = gumbel_row(int(races.seeds[r]), int(lengths[r]) + 1 + k, 130)
            scores = kept_scores(rows[first + k].cpu(), *settings) + noise
            ids[r, k : k + 1] = int(scores.argmax())  # a draft that is right, up to the last
            if k == count - (r == 3):
                wanted[r] = (k, int(scores.argmax()))
                ids[r, k : k + 1] += 1  # and one that is not
    result = accept_block(*given)
    for r, (kept_drafts, token) in wanted.items():
        assert (int(result.num_accepted[r]), int(result.next_ids[r])) == (kept_drafts, token)
    given[8] = 1.0 - given[8]
    assert torch.equal(accept_block(*given).next_ids[1:], result.next_ids[1:])


BROKEN = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seeded", [(), (1, 2, 3, 4)])
def test_a_row_that_is_no_distribution_is_told(device, dtype, seeded):
    """Wherever its token would come from it, and only there; a row of minus infinity is none."""
    told = set()
    for seed, value in enumerate(BROKEN):
        given = make_round(device, dtype, 130, seed, seeded)
        first_rows, num_drafts = given[4], given[5]
        whole = accept_block_reference(*given).num_accepted
        for r in range(REQUESTS):
            broken = (int(first_rows[r]) + seed) % (int(first_rows[r]) + int(num_drafts[r]) + 1)
            broken = max(broken, int(first_rows[r]))
            given[3][broken, 7 if value == value and value > 0 else slice(None)] = value
        result, expected = accept_block(*given), accept_block_reference(*given)
        assert result.num_accepted.tolist() == expected.num_accepted.tolist()
        assert result.next_ids.tolist() == expected.next_ids.tolist()
        told.update(zip(whole.tolist(), result.num_accepted.tolist(), strict=True))
    assert any(after < 0 for _, after in told) and any(after >= 0 for _, after in told)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_nan_is_told_and_one_that_nobody_reads_is_not(device, dtype):
    given = make_round(device, dtype, 130, 1)
    first, kept = int(given[4][0]), int(accept_block_reference(*given).num_accepted[0])
    assert kept < 3
    given[3][first + kept + 1 :][0, 100] = float("nan")
    assert accept_block(*given).num_accepted[0] == kept
    given[3][first + kept, 100] = float("nan")
    assert accept_block(*given).num_accepted[0] == -1


@pytest.mark.parametrize("rule", [accept_block, accept_block_reference])
def test_drafts_of_a_broken_head_are_refused_and_leave_the_targets_distribution(device, rule):
    given = make_round(device, torch.float32, 63, 2)
    given[1].fill_(float("nan"))
    given[2].fill_(float("nan"))
    result = rule(*given)
    assert result.num_accepted[1:].tolist() == [0] * (REQUESTS - 1)
    for r in range(1, REQUESTS):
        temperature, top_k, top_p = (f[r].item() for f in given[6])
        row = given[3][int(given[4][r])]
        mass = probabilities(row, temperature, top_k, top_p).double().cumsum(0)
        point = given[8][r, -1].double() * mass[-1]
        assert int(result.next_ids[r]) == int(torch.searchsorted(mass, point, right=True))
