"""A model whose text is known beforehand: after each token it writes the one that follows."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
STAND_INS = {b: chr(b) for b in PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(OTHERS)}


def write_byte_tokenizer(
    folder: Path,
    special: Sequence[str] = (),
    plain: Sequence[str] = (),
    words: Sequence[bytes] = (),
    **config: object,
) -> dict[str | bytes, int]:
    """Byte-level BPE without merges: id b is byte b, then `words`, then added tokens. Returns the
    ids of the latter two."""
    vocabulary = {STAND_INS[byte]: byte for byte in range(256)}
    for word in words:
        vocabulary["".join(STAND_INS[byte] for byte in word)] = len(vocabulary)
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    core.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain])
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ids: dict[str | bytes, int] = {word: 256 + index for index, word in enumerate(words)}
    return ids | {name: core.token_to_id(name) for name in (*special, *plain)}


def chain(*ids: int) -> dict[int, int]:
    """Each id leads to the next one."""
    return dict(pairwise(ids))


def write_automaton(
    folder: Path, follows: Mapping[int, int], size: int, eos: int | list[int] | None = None
) -> Path:
    """A Llama that writes follows[t] after token t, whatever came before; t again without one."""
    width = -(-size // 16) * 16
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[:, :size] = torch.eye(size)
        for token in range(size):
            model.lm_head.weight[follows.get(token, token), token] = 1.0
    model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)
    return folder
