"""Lookup drafts what followed the last tokens before, and nothing where they are new."""

import json
from collections import Counter

import pytest
import torch

from dspark.config import EngineConfig, ScheduleConfig
from dspark.drafters.lookup import BLOCK_SIZE, LookupDrafter
from dspark.engine.session import Session, open_session
from dspark.events import Round
from dspark.hub import PairFiles
from dspark.progress import follow
from tests.engine.pairs import GOLDEN, PROMPT, decode, request
from tests.engine.test_distribution import FALSE_ALARM, chi_square_p

PROMPTS = [PROMPT, PROMPT[:1], PROMPT * 3]


def propose(anchor: int, *histories: list[int]) -> list[list[int]]:
    drafter = LookupDrafter()
    slots = [drafter.open() for _ in histories]
    drafter.extend(slots, [torch.tensor(each) for each in histories], [torch.empty(0)] * len(slots))
    anchors = torch.tensor([anchor] * len(slots))
    proposals = drafter.propose(slots, anchors, chooser=None)  # type: ignore[arg-type]
    assert proposals.token_ids.shape == (len(slots), BLOCK_SIZE)
    rows = zip(proposals.token_ids.tolist(), proposals.lengths, strict=True)
    return [row[:length] for row, length in rows]


def test_the_longest_run_wins_and_of_equals_the_latest():
    longest = [1, 2, 3, 4, 10, 11, 12, 13, 14, 9, 3, 4, 20, 21, 22, 23, 24, 1, 2, 3]
    assert propose(4, longest) == [[10, 11, 12, 13, 14]]
    latest = [4, 10, 11, 12, 13, 14, 4, 20, 21, 22, 23, 24, 7]
    assert propose(4, latest) == [[20, 21, 22, 23, 24]]


def test_a_copy_runs_into_itself():
    assert propose(6, [5, 6, 5]) == [[5, 6, 5, 6, 5]]
    assert propose(7, [7]) == [[7, 7, 7, 7, 7]]


def test_a_new_token_is_followed_by_no_draft_beside_one_that_is_not_new():
    assert propose(4, [1, 2, 3], [4, 8, 9, 1, 1, 2], []) == [[], [8, 9, 1, 1, 2], []]


def test_a_truncated_request_is_a_fresh_one():
    drafter = LookupDrafter()
    slot, fresh = drafter.open(), drafter.open()
    drafter.extend([slot], [torch.tensor([1, 2, 3, 1, 9, 9])], [torch.empty(0)])
    drafter.truncate(slot, 3)
    drafter.extend([fresh], [torch.tensor([1, 2, 3])], [torch.empty(0)])
    assert slot == fresh


def open_lookup(**config: object) -> Session:
    """Drafting is never parked, which would depend on times."""
    config = {"schedule": ScheduleConfig("full"), **config}
    files = PairFiles("test", GOLDEN / "vanilla" / "target", None, headless="lookup")
    session = follow(open_session(files, config=EngineConfig(**config)))  # type: ignore[arg-type]
    assert isinstance(session, Session) and session.has_drafter
    return session


def test_drafts_are_accepted_and_a_round_without_one_verifies_a_single_row():
    session = open_lookup()
    rounds = [e for e in session.engine.run([request(PROMPT * 3, 60)]) if isinstance(e, Round)]
    assert any(r.accepted for r in rounds)
    first = next(r for r in session.engine.run([request((1, 2, 3), 1)]) if isinstance(r, Round))
    assert first.anchor not in (1, 2, 3)
    assert first.draft == () and first.verified == 0
    lengths = {len(r.draft) for r in rounds}
    assert lengths <= {0, BLOCK_SIZE} and all(r.verified == len(r.draft) for r in rounds)


def test_a_warm_cache_equals_a_fresh_one():
    session = open_lookup()
    first = decode(session.engine, [request(PROMPT, 20)])[0]
    longer = request((*PROMPT, *first[:15], 5, 6), 30)
    warm = list(session.engine.run([longer]))
    fresh = list(open_lookup().engine.run([longer]))
    drafts = [[e.draft for e in events if isinstance(e, Round)] for events in (warm, fresh)]
    assert drafts[0] == drafts[1] and warm[-1].token_ids == fresh[-1].token_ids


def test_pairs_of_tokens_follow_the_golden_distribution():
    golden_run = json.loads((GOLDEN / "vanilla" / "sampling.json").read_text())
    engine = open_lookup(entropy=0).engine
    asks = [request(golden_run["prompt"], 2, temperature=1.0) for _ in range(600)]
    written = decode(engine, asks)
    assert chi_square_p(Counter(first for first, _ in written), golden_run["first"]) > FALSE_ALARM
    for first, expected in golden_run["second"].items():
        followers = Counter(second for f, second in written if f == int(first))
        assert chi_square_p(followers, expected) > FALSE_ALARM


@pytest.mark.parametrize("draft", [0, 1])
def test_a_certain_draft_is_refused_as_often_as_the_target_says(draft):
    """Four standard deviations of 2,000 draws are 0.041."""
    from dspark.config import SamplingConfig
    from dspark.engine.sampling import Sampler

    sampler = Sampler(SamplingConfig(temperature=1.0), entropy=1)
    rows = torch.tensor([[0.7, 0.3], [0.5, 0.5]]).log()
    outcomes = [sampler.accept(torch.tensor([draft]), None, rows, 0) for _ in range(2_000)]
    first = [draft if kept else following for kept, following in outcomes]
    assert first.count(0) / len(first) == pytest.approx(0.7, abs=0.041)
