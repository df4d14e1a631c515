"""From a llama.cpp file (GGUF) of a Llama, Qwen2 or Qwen3 to a folder as Hugging Face has it.

Written once into the store, so that loading needs neither GGUF nor its slow start. Weights keep the
codes of the file, laid out for the CPU's kernels (gguf_codes.py); of a file with weights in other
formats all become bf16.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from safetensors.torch import save_file

from dspark.atomic import share
from dspark.checkpoints.files import shown
from dspark.checkpoints.gguf_codes import CONVERSION, STATED, Codes, codes_metadata
from dspark.checkpoints.gguf_keys import check_keys
from dspark.checkpoints.gguf_rope import rope_parameters, with_divisors
from dspark.checkpoints.gguf_stops import special_id, stop_ids
from dspark.checkpoints.gguf_tokenizer import write_tokenizer
from dspark.errors import CheckpointError
from dspark.events import FetchProgress
from dspark_kernels.cpu.formats import FORMATS
from dspark_kernels.cpu.stored_weight import StoredWeight, num_bytes, stored_weight

WEIGHTS_NAME = "model.safetensors"
REQUIRED_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
OUTPUT_NAME = "output.weight"  # absent if the embedding is also the output head
ROPE_NAME = "rope_freqs.weight"  # Llama 3's scaling, as the divisor of each frequency
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
OWN_NAMES = {  # of one architecture alone
    "llama": {},
    "qwen2": {f"attn_{x}.bias": f"self_attn.{x}_proj.bias" for x in "qkv"},
    "qwen3": {f"attn_{x}_norm.weight": f"self_attn.{x}_norm.weight" for x in "qk"},
}


def convert_gguf(source: Path, directory: Path) -> Iterator[FetchProgress]:
    """Write `directory`, which must exist; yields the number of bytes of weights written.

    Raises CheckpointError if the file is damaged or holds another kind of model.
    """
    yield FetchProgress(WEIGHTS_NAME, 0, None)
    try:
        reader = GGUFReader(source)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        _check_architecture(fields)
        check_keys(fields)
        config = _config(fields, [tensor.name for tensor in reader.tensors])
        for tensor in reader.tensors:
            if tensor.name == ROPE_NAME:
                config["rope_parameters"] = with_divisors(config, _numbers(tensor))
        weights = [tensor for tensor in reader.tensors if tensor.name != ROPE_NAME]
        yield from _write_weights(weights, config, directory)
        write_tokenizer(fields, directory)
    except KeyError as error:
        raise CheckpointError(f"{source.name} lacks the field {error.args[0]}") from error
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{source.name} is damaged or not GGUF ({error})") from error
    generation = _special_ids(fields) | _sampling(fields)
    _write_json(directory / "generation_config.json", generation)
    _write_json(directory / "config.json", config)
    share(directory / WEIGHTS_NAME)


def _write_weights(
    tensors: list[ReaderTensor], config: dict[str, Any], directory: Path
) -> Iterator[FetchProgress]:
    names = _names(config)
    keeps_codes = all(_is_in_codes(tensor) for tensor in tensors if len(tensor.shape) > 1)
    total = sum(_written_bytes(tensor, keeps_codes) for tensor in tensors)
    weights: dict[str, torch.Tensor] = {}
    codes: dict[str, Codes] = {}
    done = 0
    for tensor in tensors:
        name = names[tensor.name]
        num_heads = _turned_heads(name, config)
        if keeps_codes and len(tensor.shape) > 1:
            stored = _stored(tensor, num_heads)
            weights[name], codes[name] = stored.data, Codes(stored.kind, stored.shape)
        else:
            values = _numbers(tensor)
            values = values if num_heads is None else _pair_halves(values, num_heads)
            weights[name] = values.to(torch.float32 if keeps_codes else torch.bfloat16).contiguous()
        done += _written_bytes(tensor, keeps_codes)
        yield FetchProgress(WEIGHTS_NAME, min(done, total - 1), total)
    metadata = {"format": "pt", STATED: str(CONVERSION), **codes_metadata(codes)}
    save_file(weights, directory / WEIGHTS_NAME, metadata=metadata)
    yield FetchProgress(WEIGHTS_NAME, total, total)


def _is_in_codes(tensor: ReaderTensor) -> bool:
    return tensor.tensor_type.name.lower() in FORMATS


def _written_bytes(tensor: ReaderTensor, keeps_codes: bool) -> int:
    if keeps_codes and len(tensor.shape) > 1:
        width, *outputs = (int(size) for size in tensor.shape)  # as GGUF counts
        return num_bytes(tensor.tensor_type.name.lower(), math.prod(outputs), width)
    return int(tensor.n_elements) * (4 if keeps_codes else 2)


def _turned_heads(name: str, config: dict[str, Any]) -> int | None:
    """Of a weight whose rows are in another order, so many heads."""
    if config["model_type"] != "llama":
        return None
    counts = {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"}
    num_heads = [config[count] for end, count in counts.items() if name.endswith(end)]
    return num_heads[0] if num_heads else None


def _stored(tensor: ReaderTensor, num_heads: int | None) -> StoredWeight:
    blocks = torch.tensor(tensor.data)
    blocks = blocks if num_heads is None else _pair_halves(blocks, num_heads)
    try:
        return stored_weight(tensor.tensor_type.name.lower(), blocks.contiguous())
    except ValueError as error:
        raise CheckpointError(f"{shown(tensor.name)} of the GGUF is damaged ({error})") from error


def _numbers(tensor: ReaderTensor) -> torch.Tensor:
    try:
        return torch.tensor(dequantize(tensor.data, tensor.tensor_type))
    except NotImplementedError as error:
        raise CheckpointError(
            f"{shown(tensor.name)} of the GGUF is {tensor.tensor_type.name}, which is not read",
            "Use a file in F16, BF16, Q8_0 or one of the K-quants.",
        ) from error


def _pair_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """llama.cpp rotates adjacent rows of a head, Hugging Face rows half a head apart."""
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)  # [heads, D/2, 2, in]
    return pairs.transpose(1, 2).reshape(rows, columns)


def _names(config: dict[str, Any]) -> dict[str, str]:
    """GGUF name -> Hugging Face name of every required tensor."""
    names = dict(REQUIRED_NAMES)
    if not config["tie_word_embeddings"]:
        names[OUTPUT_NAME] = "lm_head.weight"
    for layer in range(config["num_hidden_layers"]):
        for ours, theirs in LAYER_NAMES.items():
            names[f"blk.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
        for ours, theirs in OWN_NAMES[config["model_type"]].items():
            names[f"blk.{layer}.{ours}"] = f"model.layers.{layer}.{theirs}"
    return names


def _check_architecture(fields: dict[str, Any]) -> None:
    architecture = fields["general.architecture"]
    if architecture not in CLASSES:
        raise CheckpointError(
            f"GGUF of the architecture {shown(str(architecture))!r} cannot be converted",
            f"Use a GGUF of {', '.join(CLASSES)}, or the model as safetensors.",
        )


def _config(fields: dict[str, Any], tensor_names: list[str]) -> dict[str, Any]:
    architecture = fields["general.architecture"]

    def of(key: str, default: Any = None) -> Any:
        name = f"{architecture}.{key}"
        value = fields[name] if default is None else fields.get(name, default)
        if isinstance(value, list):  # one for each layer
            if len(set(value)) != 1:
                raise CheckpointError(f"GGUF whose layers differ in {key} cannot be converted")
            return value[0]
        return value

    num_heads, hidden = of("attention.head_count"), of("embedding_length")
    head_dim = of("attention.key_length", hidden // num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if of(key, head_dim) != head_dim:
            raise CheckpointError(
                f"GGUF whose {key} is {of(key)} and not {head_dim}, the keys' length, "
                "cannot be converted"
            )
    config = {
        "architectures": [CLASSES[architecture]],
        "model_type": architecture,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": of("feed_forward_length"),
        "max_position_embeddings": of("context_length"),
        "num_attention_heads": num_heads,
        "num_hidden_layers": of("block_count"),
        "num_key_value_heads": of("attention.head_count_kv", num_heads),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope_parameters(fields),
        "tie_word_embeddings": OUTPUT_NAME not in tensor_names,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        **({"attention_bias": False, "mlp_bias": False} if architecture == "llama" else {}),
        **_special_ids(fields),
    }
    _check_names(set(_names(config)), set(tensor_names) - {ROPE_NAME})
    return config


def _check_names(expected: set[str], found: set[str]) -> None:
    for wrong, verb in ((expected - found, "lacks"), (found - expected, "has the unknown")):
        if wrong:
            raise CheckpointError(
                f"the GGUF {verb} {', '.join(sorted(wrong)[:3])} ({len(wrong)} in all)",
                "Only plain models of Llama's and Qwen's shape can be converted.",
            )


def _special_ids(fields: dict[str, Any]) -> dict[str, int | list[int]]:
    special_ids: dict[str, int | list[int]] = {}
    for role, name in {"bos": "bos_token_id", "padding": "pad_token_id"}.items():
        if (token_id := special_id(fields, role)) is not None:
            special_ids[name] = token_id
    if stops := stop_ids(fields):
        special_ids["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    return special_ids


def _sampling(fields: dict[str, Any]) -> dict[str, Any]:
    """The sampling settings recommended by the model's makers."""
    names = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
    stated = {
        ours: fields[key]
        for theirs, ours in names.items()
        if (key := f"general.sampling.{theirs}") in fields
    }
    return {"do_sample": stated.get("temperature", 1.0) > 0, **stated} if stated else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
