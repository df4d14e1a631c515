"""GGUF files of dense models, from the gguf package's writer, as targets."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quantize
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
)
from transformers.integrations.gguf.dequant import dequantize  # not the package's own

from dspark import hub
from dspark.checkpoints.gguf_tokenizer import write_tokenizer
from dspark.errors import CheckpointError
from dspark.hub.footprint import of_folders
from dspark.hub.memory_needed import Room, weight_bytes
from dspark.targets import dense_files
from dspark.targets.dense import DenseTarget
from dspark.targets.load import load_target
from dspark_kernels import QuantizedWeight
from dspark_kernels.backend import Backend

PLACE = {"device": torch.device("cpu"), "dtype": torch.float32}
ALPHABET = sorted(ByteLevel.alphabet())
TOKENS = ["<|bos|>", "<|end|>", *ALPHABET, "ab", "abc", "Ġab"]
MERGES = ["a b", "ab c", "Ġ ab"]
SIZES: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1 << 17,
    "initializer_range": 0.05,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
ROPE3 = {
    **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama 3": lambda: LlamaConfig(**SIZES | {"rope_parameters": ROPE3}, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SIZES, tie_word_embeddings=False),
}
KINDS = {
    float: gguf.GGUFValueType.FLOAT32,
    int: gguf.GGUFValueType.UINT32,
    str: gguf.GGUFValueType.STRING,
}
NUMBERS = (Kind.F16, Kind.BF16)  # the others are kept in their codes
# codes, and in groups of 32 a scale with a byte, or two numbers of half or full precision
BYTES_OF_INT4 = {Kind.Q4_0: 0.5 + 3 / 32, Kind.Q4_1: 0.5 + 4 / 32, Kind.Q4_K: 0.5 + 8 / 32}
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
STATED = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
ORIGINAL = {"rope.scaling.original_context_length": 32}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def neighbours(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows i and i + D / 2 of a head become neighbours, as llama.cpp rotates them."""
    halves = weight.view(num_heads, 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def apart(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    pairs = weight.view(num_heads, -1, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def encoded(values: torch.Tensor, kind: Kind) -> np.ndarray:
    """K-quants have no encoder there: blocks of any bits, under scales of the right size."""
    if kind not in (Kind.Q4_K, Kind.Q6_K):
        return quantize(values.numpy(), kind)
    num_bytes = {Kind.Q4_K: 144, Kind.Q6_K: 210}[kind]
    draw = np.random.default_rng(values.numel())
    blocks = draw.integers(0, 256, (values.numel() // 256, num_bytes), dtype=np.uint8)
    if kind == Kind.Q4_K:
        blocks[:, :4] = np.array([1e-4, 7.5e-4], np.float16).view(np.uint8)
    else:
        blocks[:, -2:] = np.array([4e-5], np.float16).view(np.uint8)
    return blocks.reshape(values.shape[0], -1)


def write(path: Path, name: str, kind: Kind, **changes: Any) -> Any:
    """The file, and the model that it means: exactly in codes, else in the bf16 it is kept in."""
    torch.manual_seed(0)
    config = MODELS[name]()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    architecture = changes.get("architecture", config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(500000.0)
    if "window" in changes:
        writer.add_sliding_window(changes["window"])
    for key, value in changes.get("keys", {}).items():
        writer.add_key_value(f"{architecture}.{key}", value, KINDS[type(value)])
    add_tokenizer(writer, changes.get("pre", "qwen2"))
    if name == "llama 3":
        plain = 500000.0 ** -(torch.arange(0, 64, 2) / 64)
        divisors = plain / model.model.rotary_emb.inv_freq
        writer.add_tensor("rope_freqs.weight", changes.get("divisors", divisors).numpy())
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value.copy_(add_weight(writer, key, value, config, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def add_weight(
    writer: gguf.GGUFWriter, key: str, value: torch.Tensor, config: Any, kind: Kind
) -> torch.Tensor:
    heads = {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"}
    found = [size for end, size in heads.items() if key.endswith(end)]
    num_heads = getattr(config, found[0]) if found and config.model_type == "llama" else None
    if value.dim() == 1:
        value = value + torch.rand_like(value) / 2
        writer.add_tensor(gguf_name(key), value.numpy())
        return value.bfloat16().float() if kind in NUMBERS else value
    stored = value if num_heads is None else neighbours(value, num_heads)
    data = encoded(stored, kind)
    writer.add_tensor(gguf_name(key), data, raw_dtype=kind)
    if kind in (Kind.F16, Kind.BF16):
        meant = stored.half().float() if kind == Kind.F16 else stored.bfloat16().float()
    else:
        meant = dequantize(torch.tensor(data.view(np.uint8)), int(kind)).view(stored.shape)
    meant = meant if num_heads is None else apart(meant, num_heads)
    return meant.bfloat16().float() if kind in NUMBERS else meant


def add_tokenizer(writer: gguf.GGUFWriter, pre: str) -> None:
    special = [gguf.TokenType.CONTROL] * 2
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(special + [gguf.TokenType.NORMAL] * (len(TOKENS) - 2))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("qwen3", kind) for kind in (Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_K, Kind.Q6_K)),
        *((name, Kind.Q8_0) for name in ("llama", "llama 3", "qwen2")),
        ("llama", Kind.Q4_K),
    ],
)
def test_logits_are_those_of_the_model_it_means(tmp_path: Path, name: str, kind: Kind) -> None:
    model = write(tmp_path / "model.gguf", name, kind)
    folder = hub.resolve_target(str(tmp_path / "model.gguf"))
    target = load_target(folder, tap_layers=(0,), **PLACE)
    assert isinstance(target, DenseTarget)
    assert target.spec.stop_token_ids == {1}
    ids = torch.randint(0, len(TOKENS), (40,))
    with torch.inference_mode():
        wanted = model(input_ids=ids[None]).logits[0]
        found = target.verify([target.open()], [ids]).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        *((kind, "int4") for kind in (Kind.Q4_0, Kind.Q4_1, Kind.Q4_K)),
        (Kind.Q8_0, "int8"),
        (Kind.Q6_K, ""),
    ],
)
def test_codes_stay_codes_where_kernels_multiply_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, kept: str
) -> None:
    """On a GPU, of formats that its kernels read; others become numbers."""
    model = write(tmp_path / "model.gguf", "llama", kind)
    folder = hub.resolve_target(str(tmp_path / "model.gguf"))
    chosen = Backend("triton", "chosen here")
    monkeypatch.setattr(dense_files, "choose_backend", lambda device: chosen)
    target = load_target(folder, tap_layers=(), **PLACE)
    assert isinstance(target, DenseTarget)
    weights = [each.gate_up.weight for each in target.decoder.layers]
    kinds = {each.kind if isinstance(each, QuantizedWeight) else "" for each in weights}
    assert kinds == {kept}
    card = Room("cuda", 0, 4, keeps_codes=True)
    values = sum(p.numel() for p in model.parameters())
    in_layers = sum(
        p.numel() for name, p in model.named_parameters() if name.endswith("_proj.weight")
    )
    each = {"int4": BYTES_OF_INT4.get(kind), "int8": 1 + 2 / 32, "": 4}[kept]
    counted = weight_bytes(of_folders(folder, None), card)
    assert counted == (values - in_layers) * 4 + in_layers * each
    ids = torch.arange(30) % 60
    with torch.inference_mode():
        wanted = model(input_ids=ids[None]).logits[0]
        found = target.verify([target.open()], [ids]).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "keys", "rope"),
    [
        ("llama", {"rope.scale_linear": 4.0}, LINEAR),
        ("llama", {"rope.scaling.factor": 4.0}, LINEAR),
        ("qwen2", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, LINEAR),
        ("llama", {"rope.scaling.factor": 4.0, "rope.scale_linear": 2.0}, LINEAR),
        ("qwen2", STATED | ORIGINAL, YARN),
        ("qwen3", STATED | ORIGINAL | {"rope.scaling.yarn_beta_fast": 32.0}, YARN),
        (
            "qwen2",
            STATED | ORIGINAL | {"rope.scaling.attn_factor": 1.5},
            YARN | {"attention_factor": 1.5 * (1 + 0.1 * math.log(4.0))},
        ),
        ("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}),
        ("llama", {"rope.scaling.type": "linear"}, {}),
        ("llama", {"rope.scaling.factor": 0.0, "rope.scaling.finetuned": 1}, {}),
    ],
)
def test_scaled_positions_are_those_of_the_model_it_means(
    tmp_path: Path, name: str, keys: dict[str, Any], rope: dict[str, Any]
) -> None:
    plain = write(tmp_path / "model.gguf", name, Kind.F16, keys=keys)
    config = copy.deepcopy(plain.config)
    config.rope_parameters = {**config.rope_parameters, **rope}
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.load_state_dict(plain.state_dict())
    target = load_target(hub.resolve_target(str(tmp_path / "model.gguf")), tap_layers=(), **PLACE)
    ids = torch.randint(0, len(TOKENS), (60,))
    with torch.inference_mode():
        wanted, unscaled = (
            model(input_ids=ids[None]).logits[0],
            plain(input_ids=ids[None]).logits[0],
        )
        found = target.verify([target.open()], [ids]).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert torch.allclose(wanted, unscaled, atol=1e-4) == (not rope)


def test_a_file_is_converted_once_and_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, "qwen2", Kind.Q8_0)
    steps = list(hub.fetch_missing(str(path)))
    assert steps[-1].done == steps[-1].total
    first = hub.resolve_target(str(path))
    assert hub.resolve_target(str(path)) == first
    assert not list(hub.fetch_missing(str(path)))
    found = hub.locate(str(path))
    assert found is not None
    assert (found.name, found.target, found.draft) == ("model", first, None)
    write(path, "qwen3", Kind.Q8_0)
    assert hub.locate(str(path)) is None
    assert list(hub.fetch(str(path)))
    changed = hub.locate(str(path))
    assert changed is not None
    assert changed.target != first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "gemma3"}, "architecture 'gemma3'"),
        ({"name": "llama", "window": 512}, "attention.sliding_window = 512"),
        ({"pre": "made-up"}, "pre-tokenizer 'made-up'"),
        ({"name": "llama 3", "divisors": torch.full((32,), 2.0)}, "unknown RoPE scaling"),
        ({"name": "qwen2", "architecture": "qwen3"}, "lacks blk.0.attn_k_norm.weight"),
        (
            {"keys": {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}},
            "scaling longrope 2.0",
        ),
        ({"keys": {"rope.scaling.factor": -1.0}}, "scaling linear -1.0"),
        ({"keys": {"rope.scaling.attn_factor": 1.5}}, "attn_factor = 1.5 without YaRN"),
        ({"keys": STATED | {"rope.scaling.yarn_beta_fast": 16.0}}, "yarn_beta_fast = 16.0"),
        ({"keys": {"rope.scaling.mystery": 1.0}}, "unknown key rope.scaling.mystery"),
        ({"keys": {"attention.mystery": 1}}, "unknown key attention.mystery"),
        ({"keys": {"attention.scale": 0.5}}, "attention.scale = 0.5"),
        ({"keys": {"attention.value_length": 32}}, "attention.value_length is 32 and not 64"),
        ({"keys": {"rope.dimension_count": 32}}, "rope.dimension_count is 32 and not 64"),
        ({"keys": {"expert_count": 8}}, "expert_count = 8"),
        ({"keys": {"final_logit_softcapping": 30.0}}, "final_logit_softcapping = 30.0"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    name = changes.pop("name", "qwen2")
    write(tmp_path / "model.gguf", name, Kind.Q8_0, **changes)
    with pytest.raises(CheckpointError, match=said) as caught:
        hub.resolve_target(str(tmp_path / "model.gguf"))
    assert "\n" not in caught.value.message
    assert not [path for path in (hub.home() / "gguf").iterdir() if path.suffix != ".lock"]


SAMPLES = ["abc ab, 1234 it's\n\n  ab  x", "e\u0301 naïve 東京 🦊 <|end|>ab", "", "IT'LL abcab"]


@pytest.mark.parametrize(("name", "pre"), [("qwen2", "qwen2"), ("llama", "llama-bpe")])
def test_text_is_split_as_the_family_does(tmp_path: Path, name: str, pre: str) -> None:
    write(tmp_path / "model.gguf", name, Kind.Q8_0, pre=pre)
    ours = AutoTokenizer.from_pretrained(hub.resolve_target(str(tmp_path / "model.gguf")))
    for text in SAMPLES:
        ids = ours.encode(text)
        assert (ids[:1] == [0]) == (pre == "llama-bpe")
        assert ours.decode(ids, skip_special_tokens=False).removeprefix("<|bos|>") == (
            text.replace("e\u0301", "é") if pre == "qwen2" else text
        )
    if pre == "qwen2":
        vocabulary = {token: index for index, token in enumerate(TOKENS)}
        merges = [tuple(merge.split(" ")) for merge in MERGES]
        theirs = Qwen2Tokenizer(vocabulary, merges, eos_token="<|end|>", unk_token=None)
        assert [ours.encode(t) for t in SAMPLES] == [theirs.encode(t) for t in SAMPLES]
    else:
        assert ours.tokenize("ab12345") == ["ab", *"12345"]
        assert len(ours.backend_tokenizer.pre_tokenizer.pre_tokenize_str("ab12345")) == 3


def test_a_sentencepiece_vocabulary_merges_by_its_scores(tmp_path: Path) -> None:
    pieces = ["a", "b", "▁", "bb", "ab", "▁a", "bba"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = [0.0] * 259 + [-10.0, -10.0, -10.0, -1.0, -2.0, -3.0, -0.5]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    fields = {"general.architecture": "llama", "llama.context_length": 64}
    tokenizer = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": kinds}
    ids = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    write_tokenizer(
        fields | {f"tokenizer.ggml.{key}": value for key, value in (tokenizer | ids).items()},
        tmp_path,
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    ours = AutoTokenizer.from_pretrained(tmp_path)
    # of the pairs in "▁ a b b a" the best is "bb", then "bba"; "▁a" is what is left
    assert ours.convert_ids_to_tokens(ours.encode("abba")) == ["<s>", "▁a", "bba"]
    assert ours.convert_ids_to_tokens(ours.encode("é")) == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    for text in ("abba ab", "é 東京 🦊"):
        assert ours.decode(ours.encode(text), skip_special_tokens=True) == text
