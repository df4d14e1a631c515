"""Probabilities of drafts are those of a fresh forward, and asking for them changes no text."""

from dataclasses import replace

import pytest
import torch

from dspark.events import Round
from tests.engine.pairs import PROMPT, golden, request


def rounds_of(engine, asked) -> list[Round]:
    return [each for each in engine.run([asked]) if isinstance(each, Round)]


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.8, "seed": 4}, {"temperature": 0.7, "top_k": 9}]
)
def test_the_targets_probability_is_that_of_a_fresh_forward(sampling):
    session = golden("vanilla")
    own = session.engine
    plain = replace(request(max_tokens=16, **sampling), tells_probs=True)
    rounds = rounds_of(own, plain)
    assert sum(len(each.target_probs) for each in rounds) > 8
    text = list(PROMPT)
    for each in rounds:
        assert len(each.target_probs) == each.verified and len(each.draft_probs) == len(each.draft)
        for at in range(each.verified):
            logits = session.next_logits([*text, each.anchor, *each.draft[:at]])
            temperature = sampling.get("temperature", 1.0)
            if k := sampling.get("top_k"):
                logits = logits.masked_fill(logits < logits.topk(k).values[-1], -torch.inf)
            wanted = (logits / temperature).softmax(0)[each.draft[at]]
            assert each.target_probs[at] == pytest.approx(float(wanted), abs=1e-4)
        text += [each.anchor, *each.draft[: each.accepted]]


def test_a_greedy_draft_is_the_likeliest_and_asking_changes_nothing():
    session = golden("vanilla")
    asked = request(max_tokens=24)
    quiet, told = (
        rounds_of(session.engine, each) for each in (asked, replace(asked, tells_probs=True))
    )
    assert [each.draft for each in quiet] == [each.draft for each in told]
    assert [each.next for each in quiet] == [each.next for each in told]
    assert all(each.draft_probs is None and each.target_probs is None for each in quiet)
    # the likeliest of V tokens has at least 1 / V; an accepted greedy draft is the target's too
    least = 1 / session.engine.target.spec.vocab_size
    for each in told:
        assert all(least <= p <= 1 for p in each.draft_probs)
        assert all(p >= least for p in each.target_probs[: each.accepted])
        assert 0 <= each.accept_seconds < each.seconds
