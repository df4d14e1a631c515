"""Promise 2: sampled output follows the target's distribution.

Counting tests with fixed seeds; with other seeds a correct engine would fail one in a million runs.
"""

import json
from collections import Counter
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from dspark.checkpoints.deepspec import read_draft
from dspark.checkpoints.eagle3_config import Eagle3Config
from dspark.config import SamplingConfig
from dspark.drafters.base import Drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.engine.loop import Engine
from dspark.engine.sampling import Sampler
from dspark.engine.scheduler import FullSchedule, SpsSchedule
from dspark.engine.sps import SpsTable
from dspark.targets.base import Target
from dspark_kernels import accept_sampled, probabilities
from tests.engine.pairs import GOLDEN, TABLE, decode, golden, request, with_scheduler

FALSE_ALARM = 1e-6
NUM_SAMPLES = 3000


def load_drafter_of(variant: str, target: Target, draft_vocabulary: torch.Tensor) -> Drafter:
    config, tensors = read_draft(GOLDEN / variant / "draft")
    parts = (tensors, target.embedding(), target.output_head())
    if isinstance(config, Eagle3Config):
        return Eagle3Drafter(config, *parts, draft_vocabulary=draft_vocabulary)
    return DSparkDrafter(config, *parts, draft_vocabulary=draft_vocabulary)


def chi_square_p(counts: Counter, probabilities: list[float]) -> float:
    """p-value of the counts under these probabilities; cells that expect < 5 are pooled."""
    total = sum(counts.values())
    cells = [(counts[i], total * p) for i, p in enumerate(probabilities)]
    rare = [cell for cell in cells if cell[1] < 5]
    common = [cell for cell in cells if cell[1] >= 5]
    common.append((sum(c for c, _ in rare), max(sum(e for _, e in rare), 1e-9)))
    statistic = sum((count - expected) ** 2 / expected for count, expected in common)
    freedom = torch.tensor((len(common) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)))


@pytest.mark.parametrize("schedule", ["full", "sps", "small vocabulary"])
@pytest.mark.parametrize("variant", ["vanilla", "gated", "rnn", "dflash", "eagle3"])
def test_pairs_of_tokens_follow_the_golden_distribution(variant, schedule):
    golden_run = json.loads((GOLDEN / variant / "sampling.json").read_text())
    scheduler = SpsSchedule(TABLE) if schedule == "sps" else FullSchedule()
    session = golden(variant)
    target = cast(Any, session.engine.target)
    target.spec = replace(target.spec, max_rows=None)  # many at once: no bit is compared here
    engine = with_scheduler(session, scheduler)
    if schedule == "small vocabulary":
        drafter = load_drafter_of(variant, engine.target, torch.arange(0, 65, 2))
        engine = Engine(engine.target, drafter, scheduler)
    asks = [request(golden_run["prompt"], 2, temperature=1.0, seed=s) for s in range(NUM_SAMPLES)]
    written = decode(engine, asks)
    assert chi_square_p(Counter(first for first, _ in written), golden_run["first"]) > FALSE_ALARM
    for first, expected in golden_run["second"].items():
        followers = Counter(second for f, second in written if f == int(first))
        assert sum(followers.values()) > 50
        assert chi_square_p(followers, expected) > FALSE_ALARM


def test_the_counting_test_can_fail():
    golden_run = json.loads((GOLDEN / "vanilla" / "sampling.json").read_text())
    asks = [request(golden_run["prompt"], 2, temperature=0.8, seed=s) for s in range(NUM_SAMPLES)]
    written = decode(golden("vanilla").engine, asks)
    assert chi_square_p(Counter(first for first, _ in written), golden_run["first"]) < FALSE_ALARM


TARGET, DRAFT = torch.tensor([0.7, 0.3]), torch.tensor([0.5, 0.5])


def share_of_a(admit: bool, samples: int = 20000) -> float:
    """How often token A comes first when one draft is checked, or none."""
    sampler = Sampler(SamplingConfig(temperature=1.0, seed=1))
    count = 0
    for _ in range(samples):
        draft, _ = sampler.choose(DRAFT.log())
        rows = torch.stack([TARGET, TARGET]) if admit else TARGET[None]
        kept, follower = sampler.accept(
            torch.tensor([draft][: int(admit)]), DRAFT[None], rows.log()
        )
        count += (draft if kept else follower) == 0
    return count / samples


def test_scheduler_stays_lossless_where_an_unrestricted_search_is_not():
    """The method's own example: SPS = (1, 0.5, 0.45), a_1 = 0.8, c_2 = 0.9 after A, 0 after B.

    A search over all lengths verifies both drafts after A and none after B, so that A comes first
    with probability 0.85 instead of 0.7. Admission must not look at c_2 to admit x_1.
    """
    table = SpsTable((1, 2, 3), (1.0, 1 / 0.5, 1 / 0.45), (1,), (0.0,))
    schedule = SpsSchedule(table)
    after_a = schedule.admit(torch.tensor([[0.8, 0.9]]), [2])
    after_b = schedule.admit(torch.tensor([[0.8, 0.0]]), [2])
    assert after_a == after_b == [0]
    # three standard deviations of 20,000 draws are 0.0097
    assert share_of_a(admit=False) == pytest.approx(0.7, abs=0.01)
    assert share_of_a(admit=True) == pytest.approx(0.7, abs=0.01)


def test_acceptance_is_exact_for_extreme_drafts():
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    never = accept_sampled(torch.tensor([0]), torch.tensor([[1.0, 0.0]]), target, generator)
    assert never == (0, 1)
    always = accept_sampled(torch.tensor([1]), torch.tensor([[0.0, 1.0]]), target, generator)
    assert always.num_accepted == 1


def test_top_k_and_top_p_keep_what_they_say():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    assert probabilities(logits, 1.0, top_k=2).count_nonzero() == 2
    full = logits.softmax(-1)
    nucleus = probabilities(logits, 1.0, top_p=0.8)
    assert nucleus.tolist() == pytest.approx([*(full[:2] / full[:2].sum()).tolist(), 0, 0])
    assert probabilities(logits, 1.0, top_p=0.01).tolist() == [1, 0, 0, 0]
    assert torch.equal(probabilities(logits, 1.0), full)


@pytest.mark.parametrize("options", [{"top_k": 4}, {"top_p": 0.6}])
def test_truncated_sampling_never_leaves_its_set(options):
    session = golden("vanilla")
    asks = [request(max_tokens=8, temperature=1.0, seed=s, **options) for s in range(40)]
    written = decode(session.engine, asks)
    for ask, tokens in zip(asks, written, strict=True):
        for position, token in enumerate(tokens):
            logits = session.next_logits((*ask.prompt_ids, *tokens[:position]))
            allowed = probabilities(logits, 1.0, options.get("top_k", 0), options.get("top_p", 1.0))
            assert allowed[token] > 0


def test_seed_decides_everything():
    engine = golden("vanilla").engine
    one, same, other = (
        decode(engine, [request(temperature=1.0, seed=seed)])[0] for seed in (5, 5, 6)
    )
    assert one == same != other
