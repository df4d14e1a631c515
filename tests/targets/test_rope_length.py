"""RoPE whose frequencies depend on the length: the text is transformers' own across the switch.

Whatever chunks a prompt is read in, whatever is drafted, and whatever a warm cache holds.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhimoeConfig,
    Qwen3Config,
)

from dspark.config import EngineConfig, RuntimeConfig, StopConfig
from dspark.engine.request import Request
from dspark.engine.session import Session, open_session
from dspark.events import Round
from dspark.hub import PairFiles
from dspark.progress import follow
from dspark.targets.dense import DenseTarget
from tests.engine.pairs import decode, open_pair, request
from tests.targets.reference import (
    SIZES,
    KnownText,
    decoded,
    generated,
    save_model,
    some_tokens,
)

SWITCH, HALF = 64, 8  # position of the switch, frequencies of a head
FACTORS = {"short_factor": [1.0] * HALF, "long_factor": [1.0 + i for i in range(HALF)]}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, **FACTORS}
LONG |= {"original_max_position_embeddings": SWITCH}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 6.0}
FIXED = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 6.0}
YARN = FIXED | {"rope_type": "yarn", "original_max_position_embeddings": SWITCH}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PHIMOE = LONG | {"long_mscale": 1.3, "short_mscale": 1.1}
ROOM, NARROW = {"max_position_embeddings": 512}, {"max_position_embeddings": SWITCH}


def gemma3(full: dict[str, Any], sliding: dict[str, Any], length: int) -> Any:
    """Layers of two kinds, each with frequencies of its own."""
    return Gemma3TextConfig(
        **SIZES | {"max_position_embeddings": length, "head_dim": 2 * HALF},
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": full, "sliding_attention": sliding},
    )


CONFIGS: dict[str, Callable[[], Any]] = {
    "phi3": lambda: Phi3Config(
        **SIZES | ROOM, original_max_position_embeddings=SWITCH, rope_parameters=dict(LONG)
    ),
    "phi3, another switch beside the factors": lambda: Phi3Config(
        **SIZES | ROOM,
        original_max_position_embeddings=SWITCH,
        rope_parameters=LONG | {"original_max_position_embeddings": 80},
    ),
    "phi3 with a window": lambda: Phi3Config(
        **SIZES | ROOM,
        original_max_position_embeddings=SWITCH,
        rope_parameters=dict(LONG),
        sliding_window=40,
    ),
    "phimoe": lambda: PhimoeConfig(
        **SIZES | ROOM, num_local_experts=4, rope_parameters=dict(PHIMOE)
    ),
    "llama longrope": lambda: LlamaConfig(**SIZES | ROOM, rope_parameters=dict(LONG)),
    "llama dynamic": lambda: LlamaConfig(**SIZES | NARROW, rope_parameters=dict(DYNAMIC)),
    "mistral dynamic": lambda: MistralConfig(
        **SIZES | NARROW, sliding_window=24, rope_parameters=dict(DYNAMIC)
    ),
    "gemma3 longrope": lambda: gemma3(dict(LONG), dict(FIXED), 512),
    "gemma3 dynamic and longrope": lambda: gemma3(
        dict(DYNAMIC), LONG | {"original_max_position_embeddings": 72}, 300
    ),
    "llama linear": lambda: LlamaConfig(**SIZES | NARROW, rope_parameters=dict(FIXED)),
    "llama3": lambda: LlamaConfig(**SIZES | ROOM, rope_parameters=dict(LLAMA3)),
    "qwen3 yarn": lambda: Qwen3Config(
        **SIZES | NARROW, head_dim=2 * HALF, rope_parameters=dict(YARN)
    ),
}
FREE = ("llama linear", "llama3", "qwen3 yarn")  # of the length
LENGTHS = (50, SWITCH, SWITCH + 1, 100)


@pytest.fixture(scope="module", params=CONFIGS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(CONFIGS[kind](), tmp_path_factory.mktemp("rope"))


def looked_up(folder: Path, chunk: int) -> Session:
    files = PairFiles("test", folder, None, "lookup")
    config = EngineConfig(prefill_chunk=chunk)
    session = follow(open_session(files, RuntimeConfig("cpu", "float32"), config))
    return session


def test_a_text_that_crosses_the_switch(kind: str, folder: Path) -> None:
    plain = open_pair(folder, None, prefill_chunk=24).engine
    assert isinstance(plain.target, DenseTarget) == (kind in FREE)
    drafting = looked_up(folder, 13).engine
    for length in LENGTHS:
        prompt = (some_tokens(12) * 9)[:length]  # repeats itself, for the lookup
        wanted = generated(folder, prompt, 40)
        ask = request(prompt, 40)
        assert decode(plain, [ask]) == [wanted], length
        assert decode(drafting, [ask]) == [wanted], length


def test_drafts_are_accepted_on_both_sides_of_the_switch(folder: Path) -> None:
    prompt = some_tokens(50)
    wanted = generated(folder, prompt, 40)
    drafter = KnownText([*prompt, *wanted])
    target = open_pair(folder, None).engine.target
    found, accepted = decoded(target, prompt, 40, drafter, chunk=16)
    assert found == wanted
    assert accepted >= 24


def test_a_warm_cache_that_was_rotated_otherwise_is_not_used(folder: Path) -> None:
    session = looked_up(folder, 16)
    history = some_tokens(40)
    for more in (8, 9, 20, 3):  # over the switch, beyond it, then back before it
        answer = decode(session.engine, [request(history, 10)])[0]
        assert answer == generated(folder, history, 10), len(history)
        history = [*history, *answer, *some_tokens(more)]
    for length in (50, SWITCH + 3, 45):
        cut = history[:length]
        assert decode(session.engine, [request(cut, 24)])[0] == generated(folder, cut, 24), length


def test_heads_change_nothing(
    kind: str, folder: Path, make_tiny_head: Callable[[Path], Path]
) -> None:
    session = open_pair(folder, make_tiny_head(folder), prefill_chunk=16)
    ask = request(some_tokens(54), 24)
    wanted = generated(folder, some_tokens(54), 24)
    assert decode(session.engine, [ask, replace(ask, plain=True)]) == [wanted, wanted]


def test_no_block_crosses_where_the_cache_is_computed_anew(tmp_path: Path) -> None:
    folder = save_model(CONFIGS["phi3"](), tmp_path)
    session = looked_up(folder, 512)
    assert session.engine.target.spec.recomputed_at == SWITCH
    ask = Request(tuple((some_tokens(4) * 20)[:55]), stop=StopConfig(max_tokens=30))
    rounds = [e for e in session.engine.run([ask]) if isinstance(e, Round)]
    ends = [e.context_tokens - 1 for e in rounds]  # committed behind each round
    starts = [55, *ends[:-1]]
    assert SWITCH in starts
    for start, each in zip(starts, rounds, strict=True):
        assert start >= SWITCH or start + each.verified + 1 <= SWITCH
