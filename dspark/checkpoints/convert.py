"""Writes a head in another engine's layout: DeepSpec's, that of speculators for vLLM, or its
authors' own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dspark.atomic import new_folder, share
from dspark.checkpoints.deepspec import write_head
from dspark.checkpoints.dflash2_config import NESTED, DFlash2Config
from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.checkpoints.head_config import HeadConfig
from dspark.checkpoints.head_configs import OWN_LAYOUT
from dspark.checkpoints.heads import SHARED_WITH_TARGET, find_head, read_draft
from dspark.checkpoints.model_folder import DRAFT_VOCABULARY
from dspark.checkpoints.safetensors_dir import iterate_tensors
from dspark.config import ALGORITHMS
from dspark.errors import CheckpointError, InputError, StorageError

Layout = Literal["deepspec", "speculators", "dflash"]
TARGET_NAMES = {
    "model.embed_tokens.weight": "embed_tokens.weight",
    "lm_head.weight": "lm_head.weight",
}
SPECULATORS_KEYS = (  # of its transformer_layer_config, besides the number of layers
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_parameters"),
    *("max_position_embeddings", "attention_bias", "attention_dropout", "layer_types"),
    *("num_hidden_layers", "tie_word_embeddings", "sliding_window", "use_sliding_window"),
)


@dataclass(frozen=True, slots=True)
class Converted:
    """The head that was read, and the settings that the new files cannot hold."""

    packaging: str
    dropped: tuple[str, ...]


def convert_head(
    source: Path, out: Path, layout: Layout, target: Path | None = None, target_name: str = ""
) -> Converted:
    """Write the head in `source` to the new folder `out`, which appears only when complete.

    `target` supplies the embedding and output head if the head stores none.
    """
    if out.exists():
        raise InputError(f"{out} already exists", "Give a new folder, or delete this one.")
    source_head = find_head(source)
    config, tensors = read_draft(source_head.folder)
    if target is not None:
        tensors = _borrowed(target, config, tensors) | tensors
    dropped = [
        f"{name} (the target's is used)" for name in SHARED_WITH_TARGET if name not in tensors
    ]
    if source_head.folder.has(DRAFT_VOCABULARY):
        dropped.append("the draft vocabulary (all tokens are drafted from)")
    if "graft" in source_head.raw:
        dropped.append("the record of its training")
    try:
        with new_folder(out) as folder:
            if layout == "speculators":
                dropped += _write_speculators(folder, config, tensors, target_name)
            else:
                _refuse_for(layout, config)
                write_head(folder, config, tensors, {})
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"could not write the head to {out} ({error})", "Free some space and try again."
        ) from error
    return Converted(source_head.packaging.value, tuple(dropped))


def _borrowed(
    target: Path, config: HeadConfig, tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The target's embedding and output head, in the dtype of the head's own tensors."""
    dtype = tensors["norm.weight"].dtype
    tables = {
        TARGET_NAMES[name]: tensor.to(dtype)
        for name, tensor in iterate_tensors(target, names=TARGET_NAMES)
    }
    if "embed_tokens.weight" not in tables:
        raise CheckpointError(f"{target} has no model.embed_tokens.weight to copy")
    tables.setdefault("lm_head.weight", tables["embed_tokens.weight"].clone())
    if config.draft_vocab_size:
        d2t = tensors["d2t"].long()
        tables["lm_head.weight"] = tables["lm_head.weight"][d2t + torch.arange(len(d2t))]
    return tables


def _refuse_for(layout: Layout, config: HeadConfig) -> None:
    """A head is written in the one of the two layouts that its kind has."""
    title = ALGORITHMS[config.algorithm].title
    if layout == "dflash" and not isinstance(config, OWN_LAYOUT):
        raise CheckpointError(
            f"{title} heads are not written in the layout of DFlash", "Use --to deepspec."
        )
    if layout == "dflash":
        return
    if isinstance(config, OWN_LAYOUT):
        raise CheckpointError(
            f"DeepSpec's layout has no {title} heads", "Use --to dflash or --to speculators."
        )
    if config.draft_vocab_size or not config.sample_from_anchor:
        what = "a reduced vocabulary" if config.draft_vocab_size else "an anchor without a draft"
        raise CheckpointError(f"DeepSpec's layout cannot represent {what}", "Use --to speculators.")


def _write_speculators(
    folder: Path, config: HeadConfig, tensors: dict[str, torch.Tensor], target_name: str
) -> list[str]:
    """Returns the settings that the layout cannot hold."""
    if type(config) not in (DSparkConfig, DFlash2Config):
        raise _beyond_speculators(f"{ALGORITHMS[config.algorithm].title} heads")
    assert isinstance(config, DSparkConfig)
    if config.family != "qwen3":  # its library only builds Qwen3's layers
        raise _beyond_speculators("heads of Gemma4's layers")
    if config.final_logit_softcapping is not None:
        raise _beyond_speculators("soft-capped logits")
    if isinstance(config, DFlash2Config) and config.scales:
        raise _beyond_speculators("scaled embeddings or logits")
    raw = _speculators_json(config, target_name)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if config.draft_vocab_size:
        ids = tensors["d2t"].long() + torch.arange(config.draft_vocab_size)
        tensors["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool).index_fill_(0, ids, True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    share(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    return ["the calibration of its confidences"] if config.is_calibrated else []


def _beyond_speculators(what: str) -> CheckpointError:
    return CheckpointError(f"the speculators layout does not support {what}", "Use --to deepspec.")


DSPARK_KEYS = (
    *("mask_token_id", "markov_rank", "markov_head_type"),
    *("enable_confidence_head", "confidence_head_with_markov"),
)
DFLASH2_KEYS = (
    *("mask_token_id", "conv_kernel_size", "conv_group_size"),
    *("selector_rank", "selector_top_k"),
)


def _speculators_json(config: DSparkConfig, target_name: str) -> dict[str, Any]:
    is_dflash2 = isinstance(config, DFlash2Config)
    settings = config.to_json()
    settings |= settings.get(NESTED, {})
    name = "dflash2" if is_dflash2 else "dspark"
    return {
        "architectures": ["DFlash2DraftModel" if is_dflash2 else "DSparkDraftModel"],
        "speculators_model_type": name,
        "transformer_layer_config": {key: settings[key] for key in SPECULATORS_KEYS},
        "draft_vocab_size": config.num_columns,
        "block_size": config.block_rows,
        "aux_hidden_state_layer_ids": [i + 1 for i in config.target_layer_ids],
        "sample_from_anchor": config.sample_from_anchor,
        "sliding_window_non_causal": config.sliding_window is not None,
        **{key: settings[key] for key in (DFLASH2_KEYS if is_dflash2 else DSPARK_KEYS)},
        "speculators_config": {
            "algorithm": name,
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {"proposal_type": "greedy", "speculative_tokens": config.block_size}
            ],
            "verifier": {"name_or_path": target_name or None, "architectures": []},
        },
    }
