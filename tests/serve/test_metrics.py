"""What /metrics says is what a list of the engine's events says, counted anew."""

from collections import Counter
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dspark.events import Finished, PrefillProgress, Round
from dspark.serve.metrics import Metrics
from dspark_kernels.paged_cache import PAGE
from tests.engine.paged import paged
from tests.engine.pairs import PROMPT, golden, request
from tests.engine.test_preemption import asks

PARKED = Round(0, 9, 1, (), None, 0, 0, 5, (), (), 40, 0.0, 0.1, 0.1, True)


def told(metrics: Metrics, running: int = 0, waiting: int = 0) -> dict[str, float]:
    families = text_string_to_metric_families(metrics.text(running, waiting).decode())
    return {
        ".".join([sample.name.removeprefix("dspark_"), *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def decoded():
    """Events of requests that make way for each other, share a prompt, or are cancelled; and how
    often the engine let one make way."""
    patch = pytest.MonkeyPatch()
    paged.__wrapped__(patch)
    engine = golden("vanilla", cache_tokens=3 * PAGE).engine
    preempted, preempt = [], engine._preempt
    patch.setattr(engine, "_preempt", lambda active: (preempted.append(1), preempt(active)))
    events = []
    for batch in (asks(), [request(max_tokens=7)], [request((*PROMPT, 5), 60, temperature=1.0)]):
        ids = [engine.submit(ask) for ask in batch]
        while engine.num_requests:
            if len(events) > 400:
                engine.cancel(ids[0])
            events += engine.step()
    last = engine.submit(request(PROMPT * 2, 200))
    for _ in range(4):
        events += engine.step()
    engine.cancel(last)
    events += engine.step()
    patch.undo()
    return events, len(preempted)


@pytest.fixture(scope="module")
def counted(decoded) -> dict[str, float]:
    metrics = Metrics()
    for event in (*decoded[0], PARKED):
        metrics.observe(event)
    return told(metrics)


@pytest.fixture(scope="module")
def rounds(decoded) -> list[Round]:
    return [event for event in decoded[0] if isinstance(event, Round)]


@pytest.fixture(scope="module")
def finished(decoded) -> list[Finished]:
    return [event for event in decoded[0] if isinstance(event, Finished)]


def test_tokens_and_requests(counted, finished):
    assert counted["generated_tokens_total"] == sum(len(each.token_ids) for each in finished)
    reasons = Counter(each.reason for each in finished)
    assert reasons["cancelled"] == 1 and len(reasons) > 1
    for reason, number in reasons.items():
        assert counted[f"requests_total.{reason}"] == number
    assert counted["prompt_tokens_total"] == 3 * (PAGE - 21) - 3 + 18 + 19 + 36


def test_drafts_by_position(counted, rounds):
    """From the pieces that readers see, as far as no answer was cut, and the refused ones."""
    assert counted["drafted_tokens_total"] == sum(len(each.draft) for each in rounds)
    places = range(1, 8)
    for place in places:
        checked = sum(each.verified >= place for each in rounds)
        kept = sum(each.verified - len(each.rejected) >= place for each in rounds)
        assert counted[f"verified_at_position_total.{place}"] == checked
        assert counted[f"accepted_at_position_total.{place}"] == kept
    assert counted["accepted_at_position_total.1"] > counted["accepted_at_position_total.2"] > 0
    for kind in ("verified", "accepted"):
        by_place = sum(counted[f"{kind}_at_position_total.{place}"] for place in places)
        assert counted[f"{kind}_tokens_total"] == by_place


def test_rounds_and_what_they_verify(counted, rounds):
    assert counted["rounds_total"] == len(rounds) + 1
    assert counted["parked_rounds_total"] == counted["parked"] == 1
    assert counted["verified_drafts_count"] == len(rounds) + 1
    assert counted["verified_drafts_sum"] == sum(each.verified for each in rounds)
    assert counted["verified_drafts_bucket.0.0"] == 1  # the parked one


def test_tau_and_rate_of_requests(counted, rounds, finished):
    """A round yields what it accepted and one more."""
    yields: dict[int, list[int]] = {}
    for each in rounds:
        yields.setdefault(each.request_id, []).append(each.verified - len(each.rejected) + 1)
    taus = [sum(found) / len(found) for found in yields.values()]
    assert counted["accepted_length_count"] == len(taus) == len(finished)
    assert counted["accepted_length_sum"] == pytest.approx(sum(taus))
    assert counted["tokens_per_second_count"] == len(finished)
    rates = [(len(f.token_ids) - 1) / f.stats.decode_seconds for f in finished]
    assert counted["tokens_per_second_sum"] == pytest.approx(sum(rates))
    assert counted["time_to_first_token_seconds_count"] == len(finished)


def test_hits_of_the_prefix_cache_and_who_made_way(counted, decoded):
    events, num_preempted = decoded
    assert counted["preemptions_total"] == num_preempted > 0
    # the third batch begins with the second's prompt, the last with that prompt twice
    assert counted["prefix_cache_hits_total"] == 2
    assert counted["reused_prompt_tokens_total"] == 2 * len(PROMPT)
    assert any(isinstance(event, PrefillProgress) for event in events)


def test_the_queue():
    engine = golden("vanilla", max_requests=2).engine
    for k in range(5):
        engine.submit(request(PROMPT[k:], 30))
    assert (engine.num_requests, engine.num_waiting) == (5, 5)
    engine.step()
    engine.step()
    running = engine._caches.num_open
    metrics = Metrics()
    said = told(metrics, engine.num_requests, engine.num_waiting)
    assert running == 2
    assert (said["requests_held"], said["requests_waiting"]) == (5, 5 - running)
    engine.close()


def test_parking_is_told_until_drafting_begins_again(rounds):
    metrics = Metrics()
    metrics.observe(PARKED)
    metrics.observe(replace(PARKED, is_parked=False))  # a plain request says nothing of it
    assert told(metrics)["parked"] == 1
    metrics.observe(rounds[0])
    assert told(metrics)["parked"] == 0
