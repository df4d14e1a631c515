"""What a report calls out by itself: planted faults, and a clean run that is called nothing."""

import re

import pytest

from dspark.bench.floor import Floor
from dspark.bench.notices import expectation, notices_of
from dspark.bench.peers.against import run_against
from dspark.bench.peers.arm import Answer, PeerArm
from dspark.bench.report_document import Measured
from dspark.progress import follow
from tests.bench.scripted import STEP, TEXTS, ScriptedSession, document, measured


def kinds(found: Measured) -> list[str]:
    return [notice.kind for notice in found.notices]


def test_a_clean_run_is_called_nothing():
    found = measured(ScriptedSession())
    assert kinds(found) == []
    assert document(found)["sections"][0]["expect"].startswith("Expect dspark to answer 2.")


@pytest.mark.parametrize(
    ("session", "kind", "words"),
    [
        (ScriptedSession(is_lossless=False), "not_lossless", "changes the text of 9 of 9 prompts"),
        (ScriptedSession(jitter=0.25), "noisy", "between trials"),
    ],
    ids=["not lossless", "noisy"],
)
def test_a_planted_fault_is_called_out(session, kind, words):
    found = measured(session)
    assert kinds(found) == [kind]
    assert words in found.notices[0].text


def test_one_trial_cannot_tell_noise():
    assert kinds(measured(ScriptedSession(jitter=0.25), trials=1)) == ["one_trial"]


def test_a_baseline_far_from_the_memorys_speed_is_slow():
    (section,) = measured(ScriptedSession()).sections
    reached = Floor(int(1e9 * STEP), 1e9)
    assert notices_of(section, reached) == ()
    (notice,) = notices_of(section, Floor(int(1e8 * STEP), 1e9))
    assert notice.kind == "slow_baseline" and "10.8 times" in notice.text


def peer(name: str, rate: float, plain: str, *, lie: bool = False) -> PeerArm:
    def answer(prompt_ids, max_tokens):
        text = [(sum(prompt_ids) + place) % 50 for place in range(max_tokens)]
        text[-1] += lie
        return Answer(tuple(text), 0.01, (max_tokens - 1) / rate)

    return PeerArm(name, answer, plain)


def against(*peers: PeerArm):
    ours = (peer("plain", 90.0, "plain"), peer("dspark", 120.0, "plain"))
    prompts = [[len(text.text), 3] for text in TEXTS]
    return follow(run_against((*ours, *peers), prompts, trials=2, max_tokens=8))


def with_peers(*peers: PeerArm) -> Measured:
    found = measured(ScriptedSession())
    parts = (found.sections, found.opened, found.prompt_set, None, {})
    return Measured(*parts, against(*peers), is_pair=True)


def test_a_faster_engine_without_drafts_shows_that_our_baseline_is_slow():
    assert kinds(with_peers(peer("engine", 91.0, "engine"))) == []
    found = with_peers(peer("engine", 120.0, "engine"))
    assert kinds(found) == ["slow_baseline"]
    assert "1.33 times" in found.notices[0].text


def test_an_engine_whose_drafts_change_its_text_is_not_lossless():
    plain, honest = peer("engine", 80.0, "engine"), peer("engine drafts", 99.0, "engine")
    assert kinds(with_peers(plain, honest)) == []
    found = with_peers(plain, peer("engine drafts", 99.0, "engine", lie=True))
    assert kinds(found) == ["not_lossless"]
    assert "9 of 9 prompts" in found.notices[0].text


def test_engines_take_turns_and_count_alike():
    result = against(peer("engine", 60.0, "engine"))
    assert result.best.name == "engine" and result.over_best("dspark") == pytest.approx(2.0)
    assert [each.like_our_plain for each in result.peers] == [9]
    assert [each.like_its_plain for each in (*result.ours, *result.peers)] == [None, 9, None]


def test_drafts_that_lose_are_told_to_lose():
    (section,) = measured(ScriptedSession(draft_speed=0.3)).sections
    assert expectation(section, ()).startswith("Drafts do not pay here")


def test_one_answer_is_no_forecast():
    (section,) = measured(ScriptedSession(draft_speed=0.3), trials=1, texts=TEXTS[:1]).sections
    assert expectation(section, ()).startswith("Too little was measured")


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (lambda: measured(ScriptedSession(jitter=0.25)), "it was noisy"),
        (lambda: with_peers(peer("engine", 120.0, "engine")), "speed-ups flatter"),
    ],
    ids=["noisy", "slow baseline"],
)
def test_a_run_with_a_doubt_forecasts_nothing(found, reason):
    told = document(found())["sections"][0]["expect"]
    assert told.startswith("This run cannot tell") and reason in told
    assert "easure again" in told and "times as fast" not in told


def test_the_ends_of_the_forecast_are_those_of_its_kinds():
    told = document(measured(ScriptedSession()))["sections"][0]["expect"]
    kinds = re.findall(r"\d\.\d\d", told[told.index("(") :])
    ends = re.findall(r"\d\.\d\d", told[: told.index("(")])
    assert len(kinds) > 1 and set(ends) == {min(kinds), max(kinds)}
