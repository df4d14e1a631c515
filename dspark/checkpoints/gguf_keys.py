"""The keys of a GGUF that change the model's output: each is read, or refused by name.

The reference is llama.cpp: every key that it uses for the supported architectures is used here.
Keys that describe a file (general., quantize. and other programs' own) are ignored.
"""

from collections.abc import Collection, Mapping
from typing import Any

from dspark.checkpoints.files import shown
from dspark.errors import CheckpointError

Fields = Mapping[str, Any]

# of the model, without its architecture in front
READ = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
}
# written by some programs, without a meaning for these architectures
UNHEEDED = {
    "attention.layer_norm_epsilon",
    "attention.sliding_window_pattern",
    "rope.dimension_count_swa",
    "rope.freq_base_swa",
    "rope.scaling.finetuned",
}
# the values that have no effect
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_beta_fast": (32,),
    "rope.scaling.yarn_beta_slow": (1,),
    "rope.scaling.yarn_ext_factor": (-1, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "use_parallel_residual": (False,),
}
GROUPS = ("attention.", "rope.")  # of which every other key is refused

TOKENIZER_READ = {
    *("model", "pre", "tokens", "token_type", "scores", "merges"),
    *("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id"),
    *("unknown_token_id", "padding_token_id"),
    *("fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id"),
    *("add_bos_token", "add_eos_token", "add_space_prefix"),
}
TOKENIZER_UNHEEDED = {
    *("cls_token_id", "mask_token_id", "seperator_token_id", "separator_token_id"),
    *("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id"),
    *("prefix_token_id", "suffix_token_id", "middle_token_id"),
    *("token_type_count", "precompiled_charsmap"),  # of other kinds of tokenizers
}
TOKENIZER_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_sep_token": (False,),
    "normalizer.lowercase": (False,),
    "normalizer.strip_accents": (False,),
    "remove_extra_whitespaces": (False,),
    "suppress_tokens": ([],),
}


def check_keys(fields: Fields) -> None:
    """Raises CheckpointError naming a key that would otherwise be ignored silently."""
    if (kind := fields.get("general.type", "model")) != "model":
        raise CheckpointError(f"the GGUF is of the type {shown(str(kind))!r}, not a model")
    if (parts := fields.get("split.count", 0)) > 1:
        raise CheckpointError(
            f"the GGUF is one of {parts} parts of a model",
            "Join them with llama-gguf-split --merge.",
        )
    model = _below(fields, f"{fields['general.architecture']}.")
    if not model.get("expert_count"):
        model = {key: value for key, value in model.items() if not key.startswith("expert")}
    _check(model, READ | UNHEEDED, NEUTRAL, GROUPS)
    tokenizer = _below(fields, "tokenizer.ggml.")
    _check(tokenizer, TOKENIZER_READ | TOKENIZER_UNHEEDED, TOKENIZER_NEUTRAL, ("",))


def _below(fields: Fields, prefix: str) -> dict[str, Any]:
    starts = len(prefix)
    return {key[starts:]: value for key, value in fields.items() if key.startswith(prefix)}


def _check(
    found: Fields,
    known: Collection[str],
    neutral: Mapping[str, tuple[Any, ...]],
    groups: tuple[str, ...],
) -> None:
    for key, value in found.items():
        if key in neutral:
            if value not in neutral[key]:
                text = shown(str(value))[:40]
                raise CheckpointError(f"GGUF with {shown(key)} = {text} cannot be converted")
        elif key not in known and key.startswith(groups):
            raise CheckpointError(
                f"the GGUF has the unknown key {shown(key)}",
                "It may change the model's output. Use the model as safetensors.",
            )
