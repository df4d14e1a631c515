"""The shape of a head for a given target, with the reason for every size that was derived."""

import math
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.checkpoints.eagle3_config import DraftConfig, Eagle3Config
from dspark.config import GraftConfig
from dspark.drafters.eagle3 import Eagle3Head
from dspark.drafters.parameters import trained_parameters
from dspark.errors import InputError
from dspark.graft.train.algorithm import DraftHead
from dspark.models.dspark_head import DSparkHead
from dspark.targets.context import context_limit
from dspark.targets.hf_model import rope_theta
from dspark.text.stream import load_tokenizer

NUM_TAPS = 5
DEFAULT_EPS = 1e-6


def draft_config(target: Any, config: GraftConfig, mask_token_id: int) -> DraftConfig:
    """Of the head that config.algorithm trains; otherwise as head_config."""
    shape = head_config(target, config, mask_token_id)
    if config.algorithm not in ("eagle3", "mtp"):
        return shape
    if config.num_layers != 1:
        raise InputError(
            f"an {config.algorithm} head has one layer, not {config.num_layers}",
            "Leave --layers out, or make the layer wider with --intermediate-size.",
        )
    shared = {field.name for field in fields(Eagle3Config)} & {f.name for f in fields(DSparkConfig)}
    return Eagle3Config(
        ttt_length=config.block_size,
        step_loss_decay=round(math.exp(-1.0 / config.position_decay), 6),
        **{name: getattr(shape, name) for name in shared},
    )


def build_head(shape: DraftConfig) -> DraftHead:
    return Eagle3Head(shape) if isinstance(shape, Eagle3Config) else DSparkHead(shape)


def head_config(target: Any, config: GraftConfig, mask_token_id: int) -> DSparkConfig:
    """`target` is the target's text config. Raises InputError for taps that it does not have."""
    num_layers = int(target.num_hidden_layers)
    taps = config.taps or spread_taps(num_layers)
    if list(taps) != sorted(set(taps)) or taps[0] < -1 or taps[-1] >= num_layers - 1:
        raise InputError(
            f"taps {list(taps)} do not fit a target of {num_layers} layers",
            f"Give rising layers from -1 (the embeddings) to {num_layers - 2}; the last layer "
            "is never a tap.",
        )
    num_heads = int(target.num_attention_heads)
    stored = target.to_dict()  # where layers differ, what holds for most of them
    of_target = stored.get("num_key_value_heads") or num_heads
    num_kv_heads = config.num_kv_heads or int(of_target)
    if num_heads % num_kv_heads:
        raise InputError(
            f"{num_kv_heads} heads of keys and values cannot serve {num_heads} query heads",
            f"Give --kv-heads a divisor of {num_heads}.",
        )
    head_dim = stored.get("head_dim") or target.hidden_size // num_heads
    return DSparkConfig(
        vocab_size=int(target.vocab_size),
        hidden_size=int(target.hidden_size),
        intermediate_size=config.intermediate_size or intermediate_size(target),
        num_layers=config.num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=int(head_dim),
        rms_norm_eps=float(getattr(target, "rms_norm_eps", DEFAULT_EPS)),
        rope_theta=rope_theta(target),
        block_size=config.block_size,
        mask_token_id=mask_token_id,
        target_layer_ids=tuple(taps),
        num_target_layers=num_layers,
        markov_type=config.markov_type,
        markov_rank=0 if config.markov_type == "none" else config.markov_rank,
        has_confidence=config.has_confidence,
        confidence_with_markov=config.has_confidence and config.markov_type != "none",
        max_positions=context_limit(target),
        final_logit_softcapping=getattr(target, "final_logit_softcapping", None),
    )


def intermediate_size(target: Any) -> int:
    """The target's own, else four times the hidden size, as such targets have it."""
    return int(getattr(target, "intermediate_size", None) or 4 * target.hidden_size)


def spread_taps(num_layers: int) -> tuple[int, ...]:
    """Evenly from layer 1 to the input of the last layer, whose own output is never a tap."""
    first, last = min(1, num_layers - 2), num_layers - 2
    if last < first:
        raise InputError(f"a target of {num_layers} layer has none to tap")
    points = (first + (last - first) * i / (NUM_TAPS - 1) for i in range(NUM_TAPS))
    return tuple(sorted({int(point + 0.5) for point in points}))


def unused_token(directory: Path, used: Iterable[int]) -> int:
    """A token that stands for "not known yet": an added one that no chat contains."""
    tokenizer = load_tokenizer(directory)
    taken = set(used) | set(tokenizer.all_special_ids)
    free: list[int] = [
        index for index in sorted(tokenizer.added_tokens_decoder) if index not in taken
    ]
    if not free:
        raise InputError(
            "the tokenizer has no unused token to stand for the mask", "Give one with --mask-token."
        )
    return free[0]


def fitting_intermediate_size(target: Any, config: GraftConfig, budget: int) -> int:
    """With it a head has as nearly `budget` trained parameters as can be.

    Raises InputError where all else of the head takes them up.
    """
    narrowest = draft_config(target, replace(config, intermediate_size=1), 0)
    a_unit = 3 * narrowest.hidden_size * narrowest.num_layers  # gate, up and down projections
    rest = trained_parameters(narrowest) - a_unit
    size = round((budget - rest) / a_unit)
    if size < 1:
        raise InputError(
            f"{budget} parameters are not enough for {config.algorithm}: {rest} go elsewhere",
            "Raise the budget, or take fewer taps, layers or a lower --markov-rank.",
        )
    return size
