"""The initial weights of training."""

from typing import Any

import torch
from torch import nn

from dspark.graft.head.bigram_init import Bigrams
from dspark.graft.target.frozen_target import FrozenTarget
from dspark.models.head_module import HeadModule
from dspark.targets.hf_model import final_norm

NOISE = 0.02
FIRST_LOUDNESS = 0.25


@torch.no_grad()
def start_random(head: HeadModule, generator: torch.Generator) -> None:
    """Normal weights of the usual deviation; norms are one, biases and the Markov table zero."""
    for module in head.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.normal_(0.0, NOISE, generator=generator)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    markov = head.markov_head
    if markov is not None:
        markov.markov_w2.weight.zero_()
    head.begin(generator)


@torch.no_grad()
def start_from_target(
    head: HeadModule, target: FrozenTarget, bigrams: Bigrams, generator: torch.Generator
) -> tuple[str, ...]:
    """Initialise from the target as far as shapes allow; returns notes on parts that start at
    random.

    The context feature is the input of the target's last layer, the layers are the target's last
    ones, and the Markov head starts with the target's bigrams.
    """
    start_random(head, generator)
    hidden = head.config.hidden_size
    if head.fc is not None:
        # Noise on the other taps would drown the last one: their largest entries are in the
        # hundreds.
        head.fc.weight.zero_()
        head.fc.weight[:, -hidden:] = torch.eye(hidden)
    source = list(target.layers)[-head.config.num_layers :]
    notes = [
        _take_norm(head.feature_norm, getattr(source[-1], "input_layernorm", None), "input"),
        _take_norm(head.norm, final_norm(target.model), "final"),
    ]
    for layer, original in zip(head.layers, source, strict=False):
        notes.append(_take_layer(layer, original))
    if head.markov_head is not None:
        bigrams.fill(head.markov_head)
        if head.norm is not None:  # the layers' first outputs are wrong and would drown the bigrams
            head.norm.weight.mul_(FIRST_LOUDNESS)
    return tuple(dict.fromkeys(note for note in notes if note))


def norm_scale(norm: Any) -> torch.Tensor | None:
    """The scale [H] of an RMSNorm: its weight, or 1 + weight for Gemma. None for other norms."""
    weight = getattr(norm, "weight", None)
    if weight is None:
        return None
    given = norm(torch.ones_like(weight))
    near = (s for s in (weight, 1.0 + weight) if torch.allclose(given, s, rtol=0.02, atol=0.02))
    return next(near, None)


def _take_norm(norm: nn.Module | None, original: Any, name: str) -> str:
    if norm is None:
        return ""
    scale = norm_scale(original)
    if scale is None:
        return f"the head's {name} norm starts at one: the target has no RMSNorm there"
    norm.load_state_dict({"weight": scale})
    return ""


def _take_layer(layer: nn.Module, original: nn.Module) -> str:
    """Copies the target's weights of the same meaning; returns notes on the others."""
    if hasattr(original, "pre_feedforward_layernorm"):
        return (
            "the head's layers start at random: the target's layers normalise their output, "
            "which the head's cannot"
        )
    head_state = layer.state_dict()
    target_state = original.state_dict()
    missing = [
        name
        for name in head_state
        if name not in target_state
        and not name.endswith("_norm.weight")
        and not name.startswith(("attention_conv.", "mlp_conv."))  # they begin as no-ops
    ]
    if missing:
        return f"the head's layers start at random: the target's have no {missing[0]}"
    for name in ("input_layernorm", "post_attention_layernorm"):
        scale = norm_scale(getattr(original, name))
        if scale is None:
            return f"the head's layers start at random: the target's {name} is not an RMSNorm"
        target_state[f"{name}.weight"] = scale
    target_state = _with_kv_heads(target_state, head_state)
    target_state = _with_more_neurons(_beside_embeddings(target_state, head_state), head_state)
    same = {
        n: t for n, t in target_state.items() if n in head_state and t.shape == head_state[n].shape
    }
    layer.load_state_dict(head_state | same)
    if any(name.endswith("_proj.bias") for name in target_state):
        return "the target's attention biases are left out: the head has none"
    return ""


def _with_kv_heads(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The target's keys and values, each repeated for the query heads that shared it."""
    repeated = dict(found)
    for name in ("self_attn.k_proj.weight", "self_attn.v_proj.weight"):
        times, rest = divmod(len(wanted[name]), len(found[name]))
        if times > 1 and not rest:
            head_dim = len(wanted["self_attn.k_norm.weight"])
            heads = found[name].unflatten(0, (-1, head_dim))
            repeated[name] = heads.repeat_interleave(times, dim=0).flatten(0, 1)
    return repeated


def _with_more_neurons(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A wider MLP starts as the target's: the additional neurons output zero."""
    size = len(found["mlp.gate_proj.weight"])
    if len(wanted["mlp.gate_proj.weight"]) <= size:
        return found
    widened = dict(found)
    for name in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
        widened[name] = torch.cat([found[name], wanted[name][size:]])
    down = wanted["mlp.down_proj.weight"][:, size:]
    widened["mlp.down_proj.weight"] = torch.cat(
        [found["mlp.down_proj.weight"], torch.zeros_like(down)], dim=1
    )
    return widened


def _beside_embeddings(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """EAGLE-3 projects [embedding ; hidden state]: the target's columns are for the latter."""
    if "hidden_norm.weight" not in wanted:
        return found
    widened = {n: t for n, t in found.items() if n != "input_layernorm.weight"}
    for name in ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"):
        width = found[name].shape[1]
        if wanted[name].shape == (len(found[name]), 2 * width):
            widened[name] = torch.cat([wanted[name][:, :width], found[name]], dim=1)
    return widened
