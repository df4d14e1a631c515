"""What a GGUF's header says about keys, the ends of answers and text is heeded or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from dspark.checkpoints.gguf_keys import check_keys
from dspark.checkpoints.gguf_stops import stop_ids
from dspark.checkpoints.gguf_tokenizer import write_tokenizer
from dspark.errors import CheckpointError
from dspark.text.stream import TextCodec
from tests.automaton import STAND_INS

GENERAL = {"general.architecture": "llama", "llama.context_length": 64}


def header(**tokenizer: Any) -> dict[str, Any]:
    return GENERAL | {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}


def ends(*tokens: str, model: str = "gpt2", **keys: int) -> set[str]:
    return {tokens[i] for i in stop_ids(header(model=model, tokens=list(tokens), **keys))}


def test_named_ends_are_all_heeded():
    tokens = ("a", "b", "c", "d", "e", "f", "g")
    named = {"eos_token_id": 0, "eot_token_id": 1, "eom_token_id": 2}
    fills = {"fim_pad_token_id": 3, "fim_rep_token_id": 4, "fim_sep_token_id": 5}
    assert ends(*tokens, **named, **fills) == set("abcdef")
    assert ends(*tokens) == set()
    assert ends(*tokens, eos_token_id=(1 << 32) - 1, eot_token_id=1) == {"b"}
    assert ends("<unk>", "<s>", "</s>", "x", model="llama") == {"</s>"}
    assert ends("<unk>", "<s>", "x", "y", model="llama") == {"x"}  # 2, whatever it reads


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|start_header_id|>"), "yyyn"),
        (("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "nyy"),
        (("<start_of_turn>", "<end_of_turn>", "<eos>", "<bos>"), "nyyn"),
        (("<|end|>", "<|user|>", "<|endoftext|>"), "yny"),
        (("<|end|>", "<|return|>", "<|call|>", "<|start|>"), "nyyn"),
        (("<|end|>", "<|flush|>", "<|calls|>"), "nyy"),
        (("</s>", "<|tool_response>", "<turn|>"), "nyy"),
        (("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|fim_prefix|>"), "yyyn"),
        (("<｜end▁of▁sentence｜>", "<｜User｜>"), "yn"),
    ],
)
def test_ends_are_known_by_their_text(tokens, expected):
    assert ends(*tokens) == {t for t, is_end in zip(tokens, expected, strict=True) if is_end == "y"}


def test_what_would_be_ignored_is_refused_by_name():
    sound = header(model="gpt2", tokens=["a"], mask_token_id=0, add_sep_token=False)
    sound |= {"general.quantization_version": 2, "quantize.imatrix.file": "x", "mradermacher.x": 1}
    sound |= {"llama.expert_count": 0, "llama.expert_used_count": 0, "llama.rope.freq_base": 5.0}
    check_keys(sound)
    for key, value in {
        "tokenizer.ggml.mystery": 1,
        "tokenizer.ggml.suppress_tokens": [3],
        "tokenizer.ggml.add_sep_token": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
        "tokenizer.ggml.normalizer.lowercase": True,
        "llama.rope.scaling.short_mscale": 1.0,
        "llama.attention.temperature_scale": 0.1,
        "llama.attention.causal": False,
        "llama.logit_scale": 0.0625,
        "split.count": 3,
        "general.type": "adapter",
    }.items():
        with pytest.raises(CheckpointError) as caught:
            check_keys(sound | {key: value})
        name = key.removeprefix("llama.").removeprefix("tokenizer.ggml.")
        assert name in caught.value.message or value in ("adapter", 3)


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "[I]"]


def sentencepiece(folder: Path, **keys: Any) -> Any:
    kinds = [2, 3, 3, *[6] * 256, 1, 1, 1, 1, 4]
    scores = [0.0] * 259 + [-1.0, -2.0, -3.0, -0.5, 0.0]
    fields = header(model="llama", tokens=PIECES, token_type=kinds, scores=scores, **keys)
    folder.mkdir()
    write_tokenizer(fields, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return AutoTokenizer.from_pretrained(folder)


def test_a_prefix_space_as_llama_cpp_puts_it(tmp_path):
    ours = sentencepiece(tmp_path / "with")
    for text, tokens in {
        "a": ["<s>", "▁a"],
        " a": ["<s>", "▁", "▁a"],
        "a[I]a": ["<s>", "▁a", "[I]", "▁a"],
        "<s>b</s>a": ["<s>", "<s>", "▁", "b", "</s>", "▁a"],
    }.items():
        assert ours.convert_ids_to_tokens(ours.encode(text)) == tokens
    assert ours.decode(ours.encode("a b"), skip_special_tokens=True) == "a b"
    bare = sentencepiece(tmp_path / "without", add_space_prefix=False)
    assert bare.convert_ids_to_tokens(bare.encode("a a")) == ["<s>", "a", "▁a"]
    assert bare.decode(bare.encode(" a b"), skip_special_tokens=True) == " a b"


@pytest.mark.parametrize(
    ("keys", "before", "behind"),
    [
        ({}, ["<s>"], []),
        ({"add_bos_token": False}, [], []),
        ({"add_eos_token": True}, ["<s>"], ["</s>"]),
        ({"add_bos_token": False, "add_eos_token": True}, [], ["</s>"]),
        ({"bos_token_id": 2, "eos_token_id": 1, "add_eos_token": True}, ["</s>"], ["<s>"]),
        ({"bos_token_id": 9999}, ["<s>"], []),
    ],
)
def test_what_stands_around_a_text(tmp_path, keys, before, behind):
    ours = sentencepiece(tmp_path / "x", **keys)
    assert ours.convert_ids_to_tokens(ours.encode("a")) == [*before, "▁a", *behind]


def test_llama_cpp_knows_by_the_split_which_texts_begin_with_bos(tmp_path):
    tokens = [*STAND_INS.values(), "<s>", "</s>"]
    for pre, begins in {"llama-bpe": True, "tekken": True, "qwen2": False, "gpt-4o": False}.items():
        fields = header(model="gpt2", pre=pre, tokens=tokens, merges=[], bos_token_id=256)
        (tmp_path / pre).mkdir()
        write_tokenizer(fields | {"tokenizer.ggml.token_type": [1] * 256 + [3, 3]}, tmp_path / pre)
        (tmp_path / pre / "config.json").write_text(json.dumps({"model_type": "llama"}))
        ours = AutoTokenizer.from_pretrained(tmp_path / pre)
        assert (ours.encode("a")[0] == 256) == begins


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["it", "'s", " 12345", "Ċ", " x", "!?", "a"]),
        ("smollm", ["it", "'s", " ", *"12345", "Ċ", " x", "!?", "a"]),
        ("refact", ["it", "'s", " ", *"12345", "Ċ", " x", "!?", "a"]),
        # punctuation first, so that "'s" is cut, then groups of three digits
        (None, ["it", "'", "s", " ", "123", "45", "Ċ", " x", "!?", "a"]),
        ("default", ["it", "'", "s", " ", "123", "45", "Ċ", " x", "!?", "a"]),
    ],
)
def test_words_are_split_as_the_file_says(tmp_path, pre, words):
    said = {} if pre is None else {"pre": pre}
    fields = header(model="gpt2", tokens=[*STAND_INS.values()], merges=[], **said)
    write_tokenizer(fields, tmp_path)
    core = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    found = core.pre_tokenizer.pre_tokenize_str("it's 12345\n x!?a")
    assert [word.replace("Ġ", " ") for word, _ in found] == words


def test_a_token_that_comes_twice_is_refused(tmp_path):
    fields = header(model="gpt2", tokens=[*STAND_INS.values(), "a"], merges=[])
    with pytest.raises(CheckpointError, match="twice"):
        write_tokenizer(fields, tmp_path)


def test_what_ends_an_answer_is_no_text_of_it(tmp_path):
    tokens = [*STAND_INS.values(), "<|im_end|>", "<tool>"]
    fields = header(
        model="gpt2", pre="smollm", tokens=tokens, merges=[], token_type=[1] * 257 + [4]
    )
    write_tokenizer(fields, tmp_path)
    codec = TextCodec.from_directory(tmp_path)
    assert codec is not None
    assert codec.encode("a<|im_end|><tool>")[1:] == [256, 257]
    assert codec.decode(codec.encode("a<|im_end|><tool>")) == "a<tool>"
