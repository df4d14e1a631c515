"""The tokenizer inside a GGUF, written as Hugging Face files: byte-level BPE only."""

import json
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence

from dspark.errors import CheckpointError

ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def write_tokenizer(fields: dict[str, Any], directory: Path) -> None:
    """tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja."""
    _tokenizer(fields).save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        **_special_tokens(fields),
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
    if template := fields.get("tokenizer.chat_template"):
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


def _tokenizer(fields: dict[str, Any]) -> Tokenizer:
    if fields["tokenizer.ggml.model"] != "gpt2" or fields.get("tokenizer.ggml.add_bos_token"):
        raise CheckpointError("the tokenizer in this GGUF is not plain byte-level BPE")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(fields.get("tokenizer.ggml.pre", "default"))
    tokenizer.decoder = ByteLevelDecoder()
    kinds = fields.get("tokenizer.ggml.token_type", [])
    for token, kind in zip(tokens, kinds, strict=False):
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
            is_special = kind == TokenType.CONTROL
            tokenizer.add_tokens([AddedToken(token, special=is_special, normalized=False)])
    return tokenizer


def _pre_tokenizer(name: str) -> PreTokenizer:
    words = ByteLevel(add_prefix_space=False, use_regex=True)
    if name in ("default", "gpt-2"):
        return words
    if name == "smollm":
        # digits stand alone before words are split: "\n\n1" keeps its two line breaks together
        return Sequence([Digits(individual_digits=True), words])
    raise CheckpointError(f"the pre-tokenizer {name!r} of this GGUF is not known")


def _special_tokens(fields: dict[str, Any]) -> dict[str, str]:
    tokens = fields["tokenizer.ggml.tokens"]
    ids = {role: fields.get(f"tokenizer.ggml.{key}_token_id") for key, role in ROLES.items()}
    return {role: tokens[token_id] for role, token_id in ids.items() if token_id is not None}
