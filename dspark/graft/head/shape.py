"""The shape of a head for a given target, with a reason for every derived size."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dspark.checkpoints.head_config import HeadConfig
from dspark.checkpoints.head_configs import config_trained_by
from dspark.config import GraftConfig
from dspark.drafters.kinds import trained_parameters
from dspark.errors import InputError
from dspark.targets.context import context_limit
from dspark.targets.hf_model import rope_theta
from dspark.text.stream import load_tokenizer

NUM_TAPS = 5
DEFAULT_EPS = 1e-6


def draft_config(target: Any, config: GraftConfig, mask_token_id: int) -> HeadConfig:
    """Of the head that config.algorithm trains for a target with this text config.

    Raises InputError for a shape that the target or the algorithm does not have.
    """
    kind = config_trained_by(config.algorithm)
    return kind.for_training(_sizes(target, config), config, mask_token_id)


def _sizes(target: Any, config: GraftConfig) -> dict[str, Any]:
    """The fields of HeadConfig."""
    num_layers = int(target.num_hidden_layers)
    taps = config.taps or spread_taps(num_layers)
    if list(taps) != sorted(set(taps)) or taps[0] < -1 or taps[-1] >= num_layers - 1:
        raise InputError(
            f"taps {list(taps)} do not fit a target of {num_layers} layers",
            f"Give ascending layers from -1 (the embeddings) to {num_layers - 2}; the last layer "
            "is never a tap.",
        )
    num_heads = int(target.num_attention_heads)
    stored = target.to_dict()  # if layers differ, the value of most of them
    of_target = stored.get("num_key_value_heads") or num_heads
    num_kv_heads = config.num_kv_heads or int(of_target)
    if num_heads % num_kv_heads:
        raise InputError(
            f"{num_kv_heads} heads of keys and values cannot serve {num_heads} query heads",
            f"Give --kv-heads a divisor of {num_heads}.",
        )
    head_dim = stored.get("head_dim") or target.hidden_size // num_heads
    return {
        "vocab_size": int(target.vocab_size),
        "hidden_size": int(target.hidden_size),
        "intermediate_size": config.intermediate_size or intermediate_size(target),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": int(head_dim),
        "rms_norm_eps": float(getattr(target, "rms_norm_eps", DEFAULT_EPS)),
        "rope_theta": rope_theta(target),
        "target_layer_ids": tuple(taps),
        "num_target_layers": num_layers,
        "max_positions": context_limit(target),
        "final_logit_softcapping": getattr(target, "final_logit_softcapping", None),
    }


def intermediate_size(target: Any) -> int:
    """The target's own, else four times the hidden size, as is usual without one."""
    return int(getattr(target, "intermediate_size", None) or 4 * target.hidden_size)


def spread_taps(num_layers: int) -> tuple[int, ...]:
    """Evenly spaced from layer 1 to the input of the last layer, whose output is never a tap."""
    first, last = min(1, num_layers - 2), num_layers - 2
    if last < first:
        raise InputError(f"a target of {num_layers} layer has none to tap")
    points = (first + (last - first) * i / (NUM_TAPS - 1) for i in range(NUM_TAPS))
    return tuple(sorted({int(point + 0.5) for point in points}))


def unused_token(directory: Path, used: Iterable[int]) -> int:
    """A token that represents an unknown one: an added token that no chat contains."""
    tokenizer = load_tokenizer(directory)
    taken = set(used) | set(tokenizer.all_special_ids)
    free: list[int] = [
        index for index in sorted(tokenizer.added_tokens_decoder) if index not in taken
    ]
    if not free:
        raise InputError(
            "the tokenizer has no unused token for the mask", "Give one with --mask-token."
        )
    return free[0]


def fitting_intermediate_size(target: Any, config: GraftConfig, budget: int) -> int:
    """The width with which a head has as nearly `budget` trained parameters as possible.

    Raises InputError if the rest of the head uses them up.
    """
    narrowest = draft_config(target, replace(config, intermediate_size=1), 0)
    a_unit = 3 * narrowest.hidden_size * narrowest.num_layers  # gate, up and down projections
    rest = trained_parameters(narrowest) - a_unit
    size = round((budget - rest) / a_unit)
    if size < 1:
        raise InputError(
            f"{budget} parameters are not enough for {config.algorithm}: the rest takes {rest}",
            "Raise the budget, or use fewer taps or layers, or a lower --markov-rank.",
        )
    return size
