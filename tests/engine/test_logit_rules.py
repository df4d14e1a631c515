"""Promise: biases, penalties and grammars change drafts as they change plain decoding.

The right text comes from fresh forwards, transformers' own processors for bias and repetition, and
OpenAI's formula for the other penalties.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

from dspark.config import LogitsConfig
from dspark.engine.rounds.by_turns import DeviceAndHostRounds
from dspark.errors import InputError
from dspark.events import Failed, Finished, PrefillProgress, Round
from dspark_kernels import gumbel_row
from tests.engine.paged import paged  # noqa: F401
from tests.engine.pairs import PROMPT, decode, golden, request
from tests.engine.test_distribution import FALSE_ALARM, follows, many_at_once
from tests.engine.test_seed import engines_of

RULES = {
    "bias": LogitsConfig(logit_bias=((12, 3.0), (7, -100.0), (40, 1.5))),
    "openai": LogitsConfig(presence_penalty=1.5, frequency_penalty=0.6),
    "all": LogitsConfig(((3, 2.0), (63, -4.0)), 0.5, -0.4, 1.3),
}


def adjusted(logits: torch.Tensor, prompt, written, rules: LogitsConfig) -> torch.Tensor:
    """Logits of the place after `written`, by the formulas that others wrote."""
    scores = logits[None].clone().float()
    if rules.repetition_penalty != 1:
        process = RepetitionPenaltyLogitsProcessor(rules.repetition_penalty)
        scores = process(torch.tensor([[*prompt, *written]]), scores)
    for token, count in Counter(written).items():
        scores[0, token] -= count * rules.frequency_penalty + rules.presence_penalty
    if rules.logit_bias:
        bias = {(token,): value for token, value in rules.logit_bias}
        scores = SequenceBiasLogitsProcessor(bias)(torch.tensor([[*prompt, *written]]), scores)
    return scores[0]


def written_alone(session, ask) -> tuple[int, ...]:
    written: list[int] = []
    stops = session.engine.target.spec.stop_token_ids
    while len(written) < ask.stop.max_tokens and not stops & set(written):
        logits = session.next_logits([*ask.prompt_ids, *written])
        scores = adjusted(logits, ask.prompt_ids, written, ask.logits)
        if ask.sampling.temperature:
            noise = gumbel_row(ask.sampling.seed, len(ask.prompt_ids) + len(written), len(logits))
            scores = scores / ask.sampling.temperature + noise
        written.append(int(scores.argmax()))
    return tuple(written)


def asks_with(rules: LogitsConfig) -> list:
    asks = [request(PROMPT, 18), request(PROMPT[:4], 18, temperature=0.9, seed=3)]
    return [replace(ask, logits=rules) for ask in asks]


@pytest.mark.parametrize(
    ("variant", "name"),
    [("vanilla", "bias"), ("vanilla", "all"), ("eagle3", "all")],
)
def test_every_drafter_and_schedule_writes_the_adjusted_text(variant, name):
    session = golden(variant)
    asks = asks_with(RULES[name])
    expected = [written_alone(session, ask) for ask in asks]
    free = [written_alone(session, replace(ask, logits=LogitsConfig())) for ask in asks]
    assert expected != free
    mixed = [*asks, request(PROMPT, 20)]  # one without rules shares the passes
    for drafter, engine in engines_of(session, variant).items():
        events = list(engine.run(mixed))
        texts = {e.request_id: e.token_ids for e in events if isinstance(e, Finished)}
        assert [texts[i] for i in range(3)] == [*expected, decode(session.engine, [mixed[2]])[0]]
        if drafter in ("whole blocks", "threshold"):
            rounds = [e for e in events if isinstance(e, Round) and e.request_id < 2]
            assert sum(e.accepted for e in rounds) > 0


@pytest.mark.usefixtures("paged")
def test_beside_rounds_of_the_device_the_host_leads_adjusted_ones():
    session = golden("vanilla")
    assert isinstance(session.engine._rounds, DeviceAndHostRounds)
    asks = [*asks_with(RULES["all"]), request(PROMPT, 30), request(PROMPT[:6], 25)]
    alone = [decode(session.engine, [replace(ask, plain=True)])[0] for ask in asks]
    assert alone[0] == written_alone(session, asks[0])
    for capacity in (1, 8):
        session.engine._rounds.capacity = capacity
        assert decode(session.engine, asks) == alone


@pytest.mark.usefixtures("paged")
def test_a_fault_in_one_group_leaves_the_other():
    """Logits of the adjusted request turn to NaN; the device's request goes on."""
    session = golden("vanilla")
    expected = decode(session.engine, [request(PROMPT, 30)])[0]
    engine = session.engine
    broken = engine.submit(asks_with(RULES["all"])[0])
    whole = engine.submit(request(PROMPT, 30))
    run = engine._rounds._of_host._run

    def breaking(slots, blocks):
        passed = run(slots, blocks)
        return replace(passed, logits=passed.logits * float("nan"))

    engine._rounds._of_host._run = breaking
    events = []
    while engine.num_requests:
        events += engine.step()
    assert [e.request_id for e in events if isinstance(e, Failed)] == [broken]
    assert [(e.request_id, e.token_ids) for e in events if isinstance(e, Finished)] == [
        (whole, expected)
    ]


def test_sampling_without_a_seed_follows_the_adjusted_law():
    session = many_at_once(golden("vanilla", entropy=0))
    rules = LogitsConfig(((12, 1.0),), 1.0, 0.5, 1.2)
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(2):
        longer = {}
        for text, share in law.items():
            scores = adjusted(session.next_logits((*PROMPT, *text)), PROMPT, text, rules)
            kept = scores.double().topk(5)
            for token, p in zip(kept.indices.tolist(), kept.values.softmax(-1), strict=True):
                longer[*text, token] = share * float(p)
        law = longer
    ask = replace(request(PROMPT, 2, temperature=1.0, top_k=5), logits=rules)
    events = list(session.engine.run([ask] * 250))
    assert sum(e.accepted for e in events if isinstance(e, Round)) > 9
    texts = [e.token_ids for e in events if isinstance(e, Finished)]
    assert follows(texts, law) > FALSE_ALARM
    free = [e for e in session.engine.run([replace(ask, logits=LogitsConfig())] * 100)]
    assert follows([e.token_ids for e in free if isinstance(e, Finished)], law) < FALSE_ALARM


def test_logprobs_are_the_targets_own_with_and_without_drafts():
    session = golden("vanilla")
    ask = replace(request(PROMPT, 25), num_logprobs=3, logits=RULES["openai"])
    told = {}
    for plain in (False, True):
        events = list(session.engine.run([replace(ask, plain=plain)]))
        steps = [e for e in events if isinstance(e, Round | PrefillProgress)]
        told[plain] = [piece for step in steps for piece in step.pieces]
    pieces = told[False]
    assert len(pieces) == 25 and any(piece.is_draft for piece in pieces)
    assert [(p.token_id, p.logprobs) for p in pieces] == [
        (p.token_id, p.logprobs) for p in told[True]
    ]
    written = [piece.token_id for piece in pieces]
    for at, piece in enumerate(pieces):
        known = session.next_logits([*PROMPT, *written[:at]]).double().log_softmax(-1)
        assert piece.logprobs.logprob == pytest.approx(float(known[piece.token_id]), abs=1e-4)
        best = known.topk(3)
        assert [token for token, _ in piece.logprobs.top] == best.indices.tolist()
        assert [p for _, p in piece.logprobs.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_a_bias_outside_the_vocabulary_is_told():
    with pytest.raises(InputError, match="logit_bias"):
        golden("vanilla").engine.submit(
            replace(request(), logits=LogitsConfig(logit_bias=((10**6, 1.0),)))
        )
