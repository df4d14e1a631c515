"""The tokenizer inside a GGUF, written as Hugging Face files: byte-level BPE, SentencePiece."""

import json
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence
from tokenizers.processors import TemplateProcessing

from dspark.checkpoints.safetensors_dir import shown
from dspark.errors import CheckpointError

ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_WORDS = ByteLevel(add_prefix_space=False, use_regex=True)
OWN_SPLITS: dict[str, PreTokenizer] = {
    "default": _WORDS,
    "gpt-2": _WORDS,
    # digits stand alone before words are split: "\n\n1" keeps its two line breaks together
    "smollm": Sequence([Digits(individual_digits=True), _WORDS]),
}
QWEN = ("qwen2", "deepseek-r1-qwen")
LLAMA3 = ("llama3", "llama-v3", "llama-bpe")  # begin with bos, and take whole words as they are


def write_tokenizer(fields: dict[str, Any], directory: Path) -> None:
    """tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja."""
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


def _tokenizer(fields: dict[str, Any]) -> Tokenizer:
    kind, pre = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "default")
    if kind == "gpt2" and pre in OWN_SPLITS:
        tokenizer = _byte_level(fields, OWN_SPLITS[pre])
    elif kind in ("gpt2", "llama"):
        tokenizer = _of_transformers(fields, kind, pre)
    else:
        raise CheckpointError(f"the tokenizer {shown(str(kind))!r} of this GGUF is not known")
    if fields.get("tokenizer.ggml.add_bos_token", kind == "llama" or pre in LLAMA3):
        _begin_with(tokenizer, fields)
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
    """The families that transformers can build: it knows their splits and how merges are found."""
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
        raise CheckpointError(f"the pre-tokenizer {shown(pre)!r} of this GGUF is not known")
    parts = {"tokenizer_type": kind, "pre_tokenizer_type": pre}
    for name in ("tokens", "merges", "scores", "token_type"):
        if (value := fields.get(f"tokenizer.ggml.{name}")) is not None:
            parts[name] = value
    tokenizer: Tokenizer = convert_gguf_tokenizer(fields["general.architecture"], parts)[0]
    if pre in QWEN:
        tokenizer.normalizer = NFC()
    if pre in LLAMA3:
        tokenizer.model.ignore_merges = True
    return tokenizer


def _begin_with(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    token_id = fields["tokenizer.ggml.bos_token_id"]
    token = fields["tokenizer.ggml.tokens"][token_id]
    tokenizer.post_processor = TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", token, "$B"], special_tokens=[(token, token_id)]
    )


def _special_tokens(fields: dict[str, Any]) -> dict[str, str]:
    tokens = fields["tokenizer.ggml.tokens"]
    ids = {role: fields.get(f"tokenizer.ggml.{key}_token_id") for key, role in ROLES.items()}
    return {role: tokens[token_id] for role, token_id in ids.items() if token_id is not None}
