"""Heads in the layouts of speculators, SpecForge, LiquidAI and z-lab (DFlash), read as DeepSpec's.

All hold DeepSpec's tensors. Their configs differ, often copy meaningless fields of the target, and
may disagree with the tensors, whose shapes then win.
"""

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from typing import Any

import torch

from dspark.checkpoints.config_values import architecture_of
from dspark.checkpoints.detect import Packaging
from dspark.checkpoints.dflash2_config import DFlash2Config, flattened
from dspark.checkpoints.domino_config import DominoConfig
from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.checkpoints.head_config import HeadConfig
from dspark.checkpoints.qwen3_head_layers import refuse_sliding
from dspark.checkpoints.safetensors_dir import TensorInfo
from dspark.errors import CheckpointError

Infos = Mapping[str, TensorInfo]
DROPPED = ("t2d", "verifier_norm.weight", "verifier_lm_head.weight")  # for training only
LAYER = re.compile(r"layers\.(\d+)\.")
NOT_BUILT = {
    "causal": "a causal block",
    "attention_sink_bias": "attention sinks",
    "swa_window_size": "a sliding window",
    "dspark_bonus_anchor": "a block that counts its anchor",
    "pure_draft_prefix_len": "a drafted prefix",
    "shift_label": "shifted labels",
}


def canonical_name(name: str) -> str | None:
    """DeepSpec's name of a tensor; None if decoding does not use it."""
    short = name.removeprefix("model.").removeprefix("logit_head.")
    return None if short in DROPPED or short.endswith("rotary_emb.inv_freq") else short


def read_family_config(raw: Mapping[str, Any], packaging: Packaging, infos: Infos) -> DSparkConfig:
    """`infos` under canonical names. Raises CheckpointError naming a missing or unknown tensor."""
    flat = _flat(raw, packaging)
    if kind := _kind_of_its_own(flat):
        return kind.from_json(flat)
    flat |= _sizes(flat, infos) | {"architectures": [DSparkConfig.architectures["qwen3"]]}
    from_anchor = _samples_from_anchor(flat, packaging)
    if not from_anchor:
        flat["block_size"] = _number(flat, "block_size") - 1
    config = DSparkConfig.from_json(flat)
    columns = infos["lm_head.weight"].shape[0] if "lm_head.weight" in infos else config.vocab_size
    if "d2t" in infos:
        columns = infos["d2t"].shape[0]
    is_reduced = columns != config.vocab_size
    return replace(
        config,
        sample_from_anchor=from_anchor,
        draft_vocab_size=columns if is_reduced else None,
    )


def refuse_unbuilt(raw: Mapping[str, Any], packaging: Packaging) -> None:
    """Raises CheckpointError if config.json alone shows that the head cannot be run."""
    flat = _flat(raw, packaging)
    if kind := _kind_of_its_own(flat):
        kind.from_json(flat)
        return
    _refuse_unbuilt(flat, {})
    refuse_sliding(flat)
    _samples_from_anchor(flat, packaging)


def _kind_of_its_own(flat: Mapping[str, Any]) -> type[DSparkConfig] | None:
    """The config of a head that is more than DSpark or DFlash; its sizes are complete."""
    is_dflash2 = architecture_of(flat) == DFlash2Config.architectures["qwen3"]
    if is_dflash2 or flat.get("speculators_model_type") == "dflash2":
        return DFlash2Config
    is_domino = architecture_of(flat) == DominoConfig.architectures["qwen3"]
    return DominoConfig if is_domino or flat.get("projector_type") == "domino" else None


def _flat(raw: Mapping[str, Any], packaging: Packaging) -> dict[str, Any]:
    is_speculators = packaging is Packaging.SPECULATORS
    flat = _flat_speculators(raw) if is_speculators else _flat_nested(raw)
    if flat.get("target_layer_ids") is None:
        raise CheckpointError(
            "the head's config.json has no 'target_layer_ids'",
            "Which layers the head reads cannot be guessed; ask its owner for the whole config.",
        )
    return flat


def _flat_speculators(raw: Mapping[str, Any]) -> dict[str, Any]:
    kind = raw.get("speculators_model_type")
    if kind not in ("dspark", "dflash", "dflash2"):
        raise CheckpointError(
            f"the speculators head is of the kind {kind!r}; dspark, dflash and dflash2 can be read",
            "vLLM runs the others.",
        )
    layer = _object(raw, "transformer_layer_config")
    ids = raw.get("aux_hidden_state_layer_ids")
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
        raise CheckpointError("the head's config.json has no list aux_hidden_state_layer_ids")
    # speculators counts inputs of layers, so that 0 is the embeddings
    taps = [i - 1 for i in ids]
    return {**layer, **raw, "target_layer_ids": taps, "num_target_layers": None}


def _flat_nested(raw: Mapping[str, Any]) -> dict[str, Any]:
    nested = _object(raw, "dflash_config")
    dspark_keys = _object(raw, "dspark_config") if "dspark_config" in raw else {}
    projector = nested.get("projector_type")
    if projector not in (None, "dflash", "dspark", "domino"):
        raise CheckpointError(
            f"the head's projector {str(projector)[:40]!r} is not supported", "SGLang may run it."
        )
    return flattened(raw) | dspark_keys


def _sizes(flat: Mapping[str, Any], infos: Infos) -> dict[str, Any]:
    """Keys of config.json, from the tensors' shapes."""
    head_dim = _size(infos, "layers.0.self_attn.q_norm.weight")
    hidden = _size(infos, "norm.weight")
    rank = _size(infos, "markov_head.markov_w1.weight", 1) if _has_markov(infos) else 0
    confidence = infos.get("confidence_head.proj.weight")
    tables = ("embed_tokens.weight", "markov_head.markov_w1.weight")
    vocab_size = next((infos[n].shape[0] for n in tables if n in infos), flat.get("vocab_size"))
    _refuse_unbuilt(flat, infos)
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": _size(infos, "layers.0.mlp.gate_proj.weight"),
        "num_hidden_layers": 1 + max(int(m[1]) for n in infos if (m := LAYER.match(n))),
        "num_attention_heads": _size(infos, "layers.0.self_attn.q_proj.weight") // head_dim,
        "num_key_value_heads": _size(infos, "layers.0.self_attn.k_proj.weight") // head_dim,
        "head_dim": head_dim,
        "attention_bias": "layers.0.self_attn.q_proj.bias" in infos,
        "markov_rank": rank,
        "markov_head_type": _markov_type(infos),
        "enable_confidence_head": confidence is not None,
        "confidence_head_with_markov": confidence is not None
        and confidence.shape[-1:] == (hidden + rank,)
        and rank > 0,
    }


def _refuse_unbuilt(flat: Mapping[str, Any], infos: Infos) -> None:
    unsupported = [what for key, what in NOT_BUILT.items() if flat.get(key)]
    if any("qkv_proj" in name or "g_proj" in name for name in infos):
        unsupported.append("fused or gated projections")
    if flat.get("input_embedding_scale", 1.0) != 1.0:
        unsupported.append("a scaled embedding")
    if flat.get("use_sliding_window") and flat.get("sliding_window") and "layer_types" not in flat:
        unsupported.append("a sliding window")
    if unsupported:
        raise CheckpointError(
            f"the head was trained with {unsupported[0]}, which is not supported",
            "vLLM and SGLang run such heads.",
        )


def _samples_from_anchor(flat: Mapping[str, Any], packaging: Packaging) -> bool:
    """Whether the anchor's row predicts; for trainers that changed this, the config must state
    it."""
    if isinstance(explicit := flat.get("sample_from_anchor"), bool):
        return explicit
    if packaging is not Packaging.SPECULATORS:
        return packaging is not Packaging.DFLASH
    methods: Any = _object(flat, "speculators_config").get("proposal_methods")
    drafts = methods[0].get("speculative_tokens") if _is_objects(methods) else None
    block = _number(flat, "block_size")
    if drafts in (block, block - 1):
        return bool(drafts == block)
    raise CheckpointError(
        "the head's config.json has neither sample_from_anchor nor the number of drafted tokens",
        "Ask its author which row predicts the first token; a wrong guess halves acceptance.",
    )


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _has_markov(infos: Infos) -> bool:
    return "markov_head.markov_w1.weight" in infos


def _markov_type(infos: Infos) -> str:
    if "markov_head.gate_proj.weight" in infos:
        return "gated"
    return "rnn" if "markov_head.joint_proj.weight" in infos else "vanilla"


def _object(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key)
    if not isinstance(value, dict):
        raise CheckpointError(f"the head's config.json has no object {key}")
    return value


def _number(raw: Mapping[str, Any], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int):
        raise CheckpointError(f"the head's config.json has no number {key}")
    return value


def _size(infos: Infos, name: str, dim: int = 0) -> int:
    shape = infos[name].shape if name in infos else ()
    if len(shape) <= dim or shape[dim] == 0:
        raise CheckpointError(f"the head lacks a tensor {name} of the expected form")
    return shape[dim]


def ours(
    tensors: MutableMapping[str, torch.Tensor], config: HeadConfig, *, interleaved: bool
) -> MutableMapping[str, torch.Tensor]:
    """Tensors under canonical names, in our drafter's form."""
    if config.draft_vocab_size is None:
        tensors.pop("d2t", None)
    else:
        _check_d2t(tensors["d2t"], config.vocab_size)
    if interleaved:
        for name, tensor in tensors.items():
            if re.search(r"self_attn\.[qk]_(proj|norm)\.(weight|bias)$", name):
                tensors[name] = _halves(tensor, config.head_dim)
    return tensors


def _halves(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Reorder each head's rows from adjacent pairs to pairs half a head apart.

    Queries and keys are permuted alike, so their products stay the same; RoPE rotates each pair.
    """
    pairs: torch.Tensor = tensor.unflatten(0, (-1, head_dim // 2, 2))
    return pairs.transpose(1, 2).flatten(0, 2).contiguous()


def _check_d2t(d2t: torch.Tensor, vocab_size: int) -> None:
    ids = d2t.long() + torch.arange(len(d2t))
    in_range = len(ids) > 0 and int(ids.min()) >= 0 and int(ids.max()) < vocab_size
    if d2t.dtype not in (torch.int64, torch.int32) or not in_range or len(ids.unique()) < len(ids):
        raise CheckpointError(f"the head's d2t is not a map into {vocab_size} tokens")
