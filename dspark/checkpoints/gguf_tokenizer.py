"""The tokenizer inside a GGUF, written as Hugging Face files: byte-level BPE, SentencePiece."""

import json
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Decoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Normalizer, Prepend, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split
from tokenizers.processors import TemplateProcessing

from dspark.checkpoints.files import shown
from dspark.checkpoints.gguf_stops import special_id, stop_ids
from dspark.errors import CheckpointError

ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_WORDS = ByteLevel(add_prefix_space=False, use_regex=True)
# digits are split off before words: "\n\n1" keeps its two line breaks together
_DIGITS = Sequence([Digits(individual_digits=True), _WORDS])
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
# llama.cpp's default: each pattern splits the pieces that the previous ones left
_UNSAID = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
OWN_SPLITS: dict[str, PreTokenizer] = {
    "default": Sequence(
        [
            *(Split(Regex(pattern), "isolated") for pattern in _UNSAID),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    **dict.fromkeys(("gpt-2", "phi-2", "exaone4", "gigachat", "a.x-4.0", "mellum"), _WORDS),
    **dict.fromkeys(("olmo", "mpt", "jais", "trillion", "granite-docling"), _WORDS),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    **dict.fromkeys(("exaone", "minerva-7b", "mellum2"), _DIGITS),
}
QWEN = ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "qwen35")
# begin with bos, and keep whole words
WHOLE_WORDS = {
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    *("jina-v5-nano", "tekken"),
}


def write_tokenizer(fields: dict[str, Any], directory: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and, if present, chat_template.jinja."""
    fields = _with_control_tokens(fields)
    _tokenizer(fields).save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields[f"{fields['general.architecture']}.context_length"],
        "clean_up_tokenization_spaces": False,
        **_special_tokens(fields),
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
    if template := fields.get("tokenizer.chat_template"):
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


def _with_control_tokens(fields: dict[str, Any]) -> dict[str, Any]:
    """Tokens that end an answer are control tokens, whatever their type in the file."""
    key = "tokenizer.ggml.token_type"
    kinds = list(fields.get(key, [TokenType.NORMAL] * len(fields["tokenizer.ggml.tokens"])))
    for token_id in stop_ids(fields):
        kinds[token_id] = TokenType.CONTROL
    return fields | {key: kinds}


def _tokenizer(fields: dict[str, Any]) -> Tokenizer:
    kind, pre = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "default")
    tokens = fields["tokenizer.ggml.tokens"]
    if len(set(tokens)) < len(tokens):
        raise CheckpointError("the GGUF has a token twice in its vocabulary")
    if kind == "gpt2" and pre in OWN_SPLITS:
        tokenizer = _byte_level(fields, OWN_SPLITS[pre])
    elif kind in ("gpt2", "llama"):
        tokenizer = _of_transformers(fields, kind, pre)
    else:
        raise CheckpointError(f"the tokenizer {shown(str(kind))!r} of this GGUF is not supported")
    begins = kind == "llama" or pre in WHOLE_WORDS
    _surround(
        tokenizer,
        fields,
        begins=fields.get("tokenizer.ggml.add_bos_token", begins),
        ends=fields.get("tokenizer.ggml.add_eos_token", False),
    )
    return tokenizer


def _byte_level(fields: dict[str, Any], split: PreTokenizer) -> Tokenizer:
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = ByteLevelDecoder()
    kinds = fields.get("tokenizer.ggml.token_type", [])
    for token, kind in zip(tokens, kinds, strict=False):
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
            is_special = kind == TokenType.CONTROL
            tokenizer.add_tokens([AddedToken(token, special=is_special, normalized=False)])
    return tokenizer


def _of_transformers(fields: dict[str, Any], kind: str, pre: str) -> Tokenizer:
    """The families that transformers can build, with their splits and merges."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import (
            GGUF_PRE_TOKENIZER_SPLITS,
            convert_gguf_tokenizer,
        )
    except ImportError as error:
        raise CheckpointError(
            "this version of transformers cannot build the tokenizer in this GGUF",
            "Install a newer one: pip install -U transformers.",
        ) from error
    if kind == "gpt2" and pre not in GGUF_PRE_TOKENIZER_SPLITS:
        raise CheckpointError(f"the pre-tokenizer {shown(pre)!r} of this GGUF is not supported")
    tokenizer_types = {"tokenizer_type": kind, "pre_tokenizer_type": pre}
    for name in ("tokens", "merges", "scores", "token_type"):
        if (value := fields.get(f"tokenizer.ggml.{name}")) is not None:
            tokenizer_types[name] = value
    tokenizer: Tokenizer = convert_gguf_tokenizer(fields["general.architecture"], tokenizer_types)[
        0
    ]
    if pre in QWEN:
        tokenizer.normalizer = NFC()
    if pre in WHOLE_WORDS:
        tokenizer.model.ignore_merges = True
    if kind == "llama":
        _space_words(tokenizer, fields.get("tokenizer.ggml.add_space_prefix", True))
    return tokenizer


def _space_words(tokenizer: Tokenizer, has_prefix: bool) -> None:
    """A space before the text, and before the text after each added token, as in llama.cpp."""
    steps: list[Normalizer] = [Prepend("▁")] if has_prefix else []
    tokenizer.normalizer = Normalizers([*steps, Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    parts: list[Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    last: list[Decoder] = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    tokenizer.decoder = decoders.Sequence([*parts, *last])


def _surround(tokenizer: Tokenizer, fields: dict[str, Any], *, begins: bool, ends: bool) -> None:
    """The tokens before and after plain text."""
    tokens = fields["tokenizer.ggml.tokens"]
    around: list[list[tuple[str, int]]] = []
    for role, is_wanted in (("bos", begins), ("eos", ends)):
        token_id = special_id(fields, role)
        if is_wanted and token_id is None:
            raise KeyError(f"tokenizer.ggml.{role}_token_id")
        around.append([(tokens[token_id], token_id)] if is_wanted and token_id is not None else [])
    first, last = ([token for token, _ in each] for each in around)
    if not (first or last):
        return
    tokenizer.post_processor = TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *first, "$B", *last],
        special_tokens=list(dict.fromkeys(around[0] + around[1])),
    )


def _special_tokens(fields: dict[str, Any]) -> dict[str, str]:
    tokens = fields["tokenizer.ggml.tokens"]
    ids = {role: special_id(fields, name) for name, role in ROLES.items()}
    return {role: tokens[token_id] for role, token_id in ids.items() if token_id is not None}
