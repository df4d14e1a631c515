"""Dense target, DSpark head and rounds on the Triton kernels: the same tokens as transformers'."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.drafters.paged import PagedDSparkDrafter
from dspark.engine.loop import Engine
from dspark.engine.rounds.device import DeviceRounds
from dspark.engine.schedule.policies import FullSchedule
from dspark.events import Finished
from dspark.targets.dense_files import load_dense, read_config
from dspark.targets.hf import load_hf
from dspark_kernels import gumbel_row
from tests.engine.pairs import request

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
PLACE = {"device": torch.device(DEVICE), "dtype": torch.float32}
SIZES = {
    "vocab_size": 70,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
HEAD = DSparkConfig(
    vocab_size=70,
    hidden_size=32,
    intermediate_size=48,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    block_size=2,
    mask_token_id=69,
    target_layer_ids=(0,),
    num_target_layers=2,
    markov_type="gated",
    markov_rank=8,
    has_confidence=True,
    confidence_with_markov=True,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Qwen3Config(
        **SIZES, num_hidden_layers=2, initializer_range=0.3, tie_word_embeddings=True
    )
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    path = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return make_engine(folder, torch.float32)


def make_engine(folder: Path, dtype: torch.dtype) -> Engine:
    place = PLACE | {"dtype": dtype}
    target = load_dense(folder, read_config(folder), tap_layers=(0,), **place)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.3
        for name, shape in HEAD.expected_tensors().items()
        if name not in ("embed_tokens.weight", "lm_head.weight")
    }
    drafter = PagedDSparkDrafter(HEAD, tensors, target.embedding(), target.output_head())
    made = Engine(target, drafter, FullSchedule())
    assert isinstance(made._rounds, DeviceRounds)
    return made


def finished(engine: Engine, asks) -> list[tuple[int, ...]]:
    done = {e.request_id: e.token_ids for e in engine.run(asks) if isinstance(e, Finished)}
    return [done[request_id] for request_id in sorted(done)]


def test_llama_shaped_target_agrees_with_transformers(tmp_path):
    config = LlamaConfig(**SIZES, num_hidden_layers=1, initializer_range=0.3)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    dense = load_dense(tmp_path, read_config(tmp_path), tap_layers=(-1, 0), **PLACE)
    hf = load_hf(tmp_path, tap_layers=(-1, 0), stop_token_ids=frozenset(), **PLACE)
    ids = torch.arange(5, device=DEVICE) + 20
    with torch.inference_mode():
        slots = dense.open(), hf.open()
        prefilled = [t.prefill(s, ids) for t, s in zip((dense, hf), slots, strict=True)]
        verified = [t.verify([s], [ids[:3]]) for t, s in zip((dense, hf), slots, strict=True)]
    for ours, theirs in (prefilled, verified):
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.taps, theirs.taps, atol=1e-4, rtol=1e-4)


def test_two_requests_write_what_transformers_writes(folder, engine):
    asks = [request((5, 9), 4), request((7,), 3)]
    hf = load_hf(folder, tap_layers=(), stop_token_ids=frozenset(), **PLACE)
    assert finished(engine, asks) == [greedy(hf, ask) for ask in asks]


@torch.inference_mode()
def greedy(hf, ask) -> tuple[int, ...]:
    slot, block, written = hf.open(), list(ask.prompt_ids), []
    while len(written) < ask.stop.max_tokens:
        logits = hf.prefill(slot, torch.tensor(block, device=DEVICE)).logits[0]
        written.append(int(logits.argmax()))
        block = written[-1:]
    return tuple(written)


def test_sampled_requests_write_what_each_writes_alone(engine):
    asks = [request((5,), 2, temperature=0.9, top_k=20, seed=seed) for seed in (1, 2)]
    assert finished(engine, asks) == [finished(engine, [ask])[0] for ask in asks]


def test_a_seed_writes_what_transformers_logits_and_the_places_noise_say(folder, engine):
    """With drafts and without, together with a request that has none."""
    asks = [
        request((5, 9), 3, temperature=0.8, seed=3),
        request((7,), 3, temperature=1.1, top_k=9, seed=2**63),
    ]
    hf = load_hf(folder, tap_layers=(), stop_token_ids=frozenset(), **PLACE)
    wanted = [drawn(hf, ask) for ask in asks]
    assert finished(engine, [*asks, request((5, 9), 2, temperature=0.8)])[:2] == wanted
    assert finished(engine, [replace(ask, plain=True) for ask in asks]) == wanted


@torch.inference_mode()
def drawn(hf, ask) -> tuple[int, ...]:
    slot, block, written = hf.open(), list(ask.prompt_ids), []
    while len(written) < ask.stop.max_tokens:
        logits = hf.prefill(slot, torch.tensor(block, device=DEVICE)).logits[0].float().cpu()
        place = len(ask.prompt_ids) + len(written)
        if ask.sampling.top_k:
            logits[logits < logits.topk(ask.sampling.top_k).values[-1]] = float("-inf")
        noise = gumbel_row(ask.sampling.seed, place, len(logits))
        written.append(int((logits / ask.sampling.temperature + noise).argmax()))
        block = written[-1:]
    return tuple(written)


def test_in_bf16_drafts_and_company_change_no_token(folder):
    engine = make_engine(folder, torch.bfloat16)
    asks = [request((5, 9), 4), request((7,), 3)]
    plain = [finished(engine, [replace(ask, plain=True)])[0] for ask in asks]
    assert finished(engine, asks) == plain
