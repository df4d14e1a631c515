"""Promise: with a seed, text follows from model, prompt, settings and seed alone.

The right text comes from fresh forwards, transformers' own filters and the noise of each place.
"""

import random
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dspark.config import SamplingConfig, ScheduleConfig
from dspark.drafters.kinds import HEADLESS_DRAFTERS
from dspark.drafters.lookup import LookupDrafter
from dspark.engine.loop import Engine
from dspark.engine.rounds.host import HostRounds
from dspark.engine.sampling import BatchChooser, Sampler
from dspark.engine.schedule.policies import FullSchedule, SpsSchedule, ThresholdSchedule
from dspark.engine.schedule.sps_profile import SpsTable
from dspark.errors import InputError
from dspark.events import Round
from dspark.targets.hf import load_hf
from dspark_kernels import gumbel_row
from tests.engine.paged import paged  # noqa: F401
from tests.engine.pairs import PROMPT, TABLE, decode, golden, open_pair, request
from tests.engine.test_distribution import load_drafter_of

PROMPTS = [PROMPT, PROMPT[:3], PROMPT * 4]
FILTERS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 8},
    {"temperature": 1.4, "top_p": 0.9, "top_k": 30},
]
STEEP = SpsTable((1, 2, 64), (1.0, 3.0, 99.0), (1,), (0.3,))  # a draft is hardly ever worth it
FLAT = SpsTable((1, 64), (1.0, 1.01), (1,), (0.01,))  # and here always


def written_alone(session, ask) -> tuple[int, ...]:
    sampling, ids = ask.sampling, list(ask.prompt_ids)
    filters = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        filters.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        filters.append(TopPLogitsWarper(sampling.top_p))
    stops = session.engine.target.spec.stop_token_ids
    while len(ids) < len(ask.prompt_ids) + ask.stop.max_tokens and ids[-1] not in stops:
        logits = session.next_logits(ids)
        noise = gumbel_row(sampling.seed, len(ids), len(logits))
        ids.append(int((filters(None, logits[None])[0] + noise).argmax()))
    return tuple(ids[len(ask.prompt_ids) :])


def engines_of(session, variant: str) -> dict[str, Engine]:
    """Every drafter that a golden pair's target can have, under schedules that differ."""
    target, head = session.engine.target, session.engine.drafter
    small = load_drafter_of(variant, target, torch.arange(0, 65, 2))
    return {
        "none": Engine(target, None, FullSchedule()),
        **{name: Engine(target, d(), FullSchedule()) for name, d in HEADLESS_DRAFTERS.items()},
        "whole blocks": Engine(target, head, FullSchedule()),
        "threshold": Engine(target, head, ThresholdSchedule(0.4)),
        "auto": Engine(target, head, SpsSchedule(TABLE)),
        "auto, a steep table": Engine(target, head, SpsSchedule(STEEP)),
        "auto, a flat table": Engine(target, head, SpsSchedule(FLAT)),
        "small vocabulary": Engine(target, small, FullSchedule()),
    }


@pytest.mark.parametrize("variant", ["vanilla", "rnn", "dflash", "dflash2", "domino", "eagle3"])
def test_every_drafter_and_schedule_writes_what_the_target_draws_alone(variant):
    session = golden(variant, prefill_chunk=40)
    asks = [
        request(prompt, 16, seed=seed, **filters)
        for seed, (prompt, filters) in enumerate(zip(PROMPTS, FILTERS, strict=True))
    ]
    wanted = [written_alone(session, ask) for ask in asks]
    for name, engine in engines_of(session, variant).items():
        assert [decode(engine, [ask])[0] for ask in asks] == wanted, name
        assert decode(engine, asks) == wanted, name


def test_drafts_are_kept_on_the_way():
    session = golden("vanilla")
    asks = [request(PROMPTS[seed % 3], 40, seed=seed, temperature=0.7) for seed in range(6)]
    for name, engine in engines_of(session, "vanilla").items():
        rounds = [event for event in engine.run(asks) if isinstance(event, Round)]
        if name not in HEADLESS_DRAFTERS or name == "lookup":  # others may always be refused
            assert any(each.accepted for each in rounds) == (name != "none"), name


def test_a_draft_takes_the_same_noise_as_the_target():
    """A head that knows the target's logits is never refused, in either rule."""
    logits = torch.randn(5, 65, generator=torch.Generator().manual_seed(2))
    ids = torch.arange(65).flip(0)
    for sampling in (SamplingConfig(1.0, seed=4), SamplingConfig(0.8, 9, 0.9, seed=4)):
        for known in (None, [ids]):
            sampler = Sampler(sampling)
            chooser = BatchChooser([sampler], [17], 65)
            shown = logits if known is None else logits[:, ids]
            columns = torch.cat([chooser.choose(row[None], known)[0] for row in shown[:4]])
            drafts = columns if known is None else ids[columns]
            assert sampler.accept(drafts, None, logits, 17).num_accepted == 4


@pytest.mark.usefixtures("paged")
@pytest.mark.parametrize("variant", ["vanilla", "dflash"])
def test_rounds_that_the_device_leads_write_the_same(variant):
    session = golden(variant, prefill_chunk=40)
    target, head = session.engine.target, session.engine.drafter
    asks = [
        request(prompt, 14, seed=2**64 - 1 - seed, **filters)
        for seed, (prompt, filters) in enumerate(zip(PROMPTS, FILTERS, strict=True))
    ]
    wanted = [written_alone(session, ask) for ask in asks]
    for scheduler in (ThresholdSchedule(0.4), SpsSchedule(TABLE)):
        device = Engine(target, head, scheduler)
        host = Engine(target, head, scheduler)
        host._rounds = HostRounds(target, head, scheduler, host.config)
        for engine in (device, host, Engine(target, None, scheduler)):
            assert [decode(engine, [ask])[0] for ask in asks] == wanted
            assert decode(engine, asks) == wanted
    rounds = [event for event in device.run(asks) if isinstance(event, Round)]
    assert any(each.accepted for each in rounds)


@pytest.mark.parametrize("led_by", ["host", "device"])
def test_requests_of_every_kind_share_rounds(led_by, request: pytest.FixtureRequest):
    """With a seed and greedy ones write what they write alone; the others fall as they may."""
    from tests.engine.pairs import request as ask

    if led_by == "device":
        request.getfixturevalue("paged")
    session = golden("vanilla")
    fixed = [ask(PROMPT, 25, temperature=0.9, seed=5), ask(PROMPTS[1], 18)]
    free = [ask(PROMPT, 22, temperature=0.9), ask(PROMPT, 14, temperature=1.2, top_k=5)]
    alone = [decode(session.engine, [each])[0] for each in fixed]
    mixed = [fixed[0], free[0], fixed[1], free[1]]
    first, again = decode(session.engine, mixed), decode(session.engine, mixed)
    assert [first[0], first[2]] == [again[0], again[2]] == alone
    assert [first[1], first[3]] != [again[1], again[3]]


def test_a_warm_cache_changes_nothing():
    for variant in ("vanilla", "eagle3"):
        engine = golden(variant).engine
        first = decode(engine, [request(PROMPT, 20, temperature=1.0, seed=1)])[0]
        longer = request((*PROMPT, *first[:15], 5, 6), 20, temperature=1.0, seed=1)
        warm = decode(engine, [longer])
        assert warm == decode(golden(variant).engine, [longer])
        assert warm == decode(golden(variant, prefill_chunk=5).engine, [longer])


def test_going_on_from_a_part_of_the_answer_writes_the_rest():
    """Noise is tied to the token's place in the whole text, wherever the prompt ends."""
    engine = golden("vanilla").engine
    whole = decode(engine, [request(PROMPT, 20, temperature=1.0, seed=8)])[0]
    rest = decode(engine, [request((*PROMPT, *whole[:7]), 13, temperature=1.0, seed=8)])[0]
    assert whole[7:] == rest


@pytest.mark.parametrize(
    "fault",
    [
        lambda rounds, active: 1,
        lambda rounds, active: active.rounds,
        lambda rounds, active: rounds.target.length(active.slot),
    ],
)
def test_noise_of_another_place_is_noticed(monkeypatch, fault):
    """Tied to the block, to the round or to the anchor, texts are not those of the promise."""
    session = golden("vanilla")
    ask = request(PROMPT, 24, temperature=1.0, seed=0)
    wanted = written_alone(session, ask)
    monkeypatch.setattr(HostRounds, "_next_place", fault)
    assert decode(session.engine, [ask])[0] != wanted


def test_a_target_of_transformers_keeps_the_promise(tiny_llama_dir):
    place = {"device": torch.device("cpu"), "dtype": torch.float32}
    target = load_hf(tiny_llama_dir, tap_layers=(), stop_token_ids=frozenset(), **place)
    copying, plain = (
        Engine(target, LookupDrafter(), FullSchedule()),
        Engine(target, None, FullSchedule()),
    )
    for seed in range(3):
        ask = request([5, 6, 7, 8] * 4, 16, temperature=0.3, top_k=3, seed=seed)
        assert decode(copying, [ask]) == decode(plain, [ask])


def test_every_seed_of_64_bits_is_another():
    engine = golden("vanilla").engine
    seeds = (0, 1, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)
    texts = [decode(engine, [request(temperature=1.0, seed=seed)])[0] for seed in seeds]
    assert len(set(texts)) == len(seeds)
    for seed in (-1, 2**64, 10**30):
        with pytest.raises(InputError, match="seed"):
            engine.submit(request(temperature=1.0, seed=seed))


def test_without_a_seed_every_answer_is_drawn_anew():
    engine = golden("vanilla").engine
    ask = request(temperature=1.0)
    assert len({decode(engine, [ask])[0] for _ in range(4)}) == 4
    other = golden("vanilla").engine
    assert decode(engine, [ask]) != decode(other, [ask])


def test_what_is_drawn_without_a_seed_can_be_repeated():
    ask = request(temperature=1.0)
    one, same, other = (
        [decode(golden("vanilla", entropy=e).engine, [ask, ask])] for e in (1, 1, 2)
    )
    assert one == same != other
    assert one[0][0] != one[0][1]


def test_the_rule_in_use_is_told():
    rules = [
        SamplingConfig(temperature, seed=seed).acceptance
        for temperature, seed in product((0.0, 0.7), (None, 0))
    ]
    assert rules == ["greedy", "greedy", "rejection", "coupling"]


def test_random_requests_and_company(tiny_llama_dir, make_tiny_head):
    """A head that was never trained, on a larger vocabulary: texts equal plain decoding's."""
    session = open_pair(tiny_llama_dir, make_tiny_head(tiny_llama_dir), schedule=ScheduleConfig())
    chosen = random.Random(3)
    asks = [
        request(
            [chosen.randrange(5, 60) for _ in range(chosen.randrange(1, 40))], 16,
            temperature=chosen.uniform(0.05, 2.0), top_k=chosen.choice((0, 1, 7)),
            top_p=chosen.choice((1.0, 0.5, 0.95)), seed=chosen.getrandbits(64),
        )
        for _ in range(12)
    ]  # fmt: skip
    plain = [decode(session.engine, [replace(ask, plain=True)])[0] for ask in asks]
    assert [decode(session.engine, [ask])[0] for ask in asks] == plain
    assert decode(session.engine, asks) == plain
    assert plain == [written_alone(session, ask) for ask in asks]
