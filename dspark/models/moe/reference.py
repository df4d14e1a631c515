"""The layers of gpt-oss and Qwen3-MoE in torch: what runs without LLVM, and what the native program
is compared with, to the bit."""

from collections.abc import Sequence

import torch

from dspark.checkpoints.deepseek_v4_target import Block, Expert, TargetWeights
from dspark.checkpoints.moe_config import MoeConfig
from dspark.checkpoints.moe_target import FINAL_NORM, OSS_EXPERTS, router_of
from dspark.models.moe.layer_program import ALL_KEYS, heads_of, router_bias_of, sinks_of
from dspark_kernels.cpu.attend_round import attend_floats_reference
from dspark_kernels.cpu.file_weight import FileWeight
from dspark_kernels.cpu.float_matrix import multiply_floats_reference
from dspark_kernels.cpu.int8_rows import Int8Rows, round_int8_reference
from dspark_kernels.cpu.moe.reference import halves_gated, oss_gated, routed_sum, softmax_route
from dspark_kernels.cpu.mxfp4 import Segment, multiply_segment_reference
from dspark_kernels.cpu.norm_round import norm_reference
from dspark_kernels.cpu.rope_write import rope_write_reference
from dspark_kernels.cpu.step_words import Pages, Place


def run(
    config: MoeConfig,
    weights: TargetWeights,
    tap_layers: Sequence[int],
    embedded: torch.Tensor,
    pages: Pages,
    place: Place,
    rotary: tuple[torch.Tensor, torch.Tensor],
    *,
    rounds: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """embedded [N, H], the others as in step_words; keys and values go into the pages -> hidden
    states after the final norm [N, H], taps [N, T * H], experts int64 [L, N, k]."""
    total, taps, routes = embedded, {}, []
    for index, block in enumerate(weights.blocks):
        total = total + _attention(config, index, block, total, pages, place, rotary)
        x = norm_reference(
            total, block.tensors["post_attention_layernorm.weight"], config.rms_norm_eps
        )
        logits = multiply_floats_reference(x, block.matrices[router_of(config)])
        bias = router_bias_of(config, block)[: config.num_experts]
        top = config.experts_per_token
        route, shares = softmax_route(logits, bias, top, of_all=config.shares_of_all)
        said = feed(config, block, x, route, rounds=rounds)
        total = total + routed_sum(said, shares)
        routes.append(route)
        taps[index] = total
    hidden = norm_reference(total, weights.tensors[FINAL_NORM], config.rms_norm_eps)
    tapped = [taps[layer] for layer in tap_layers]
    every = torch.cat(tapped, dim=1) if tapped else hidden.new_empty(len(hidden), 0)
    return hidden, every, torch.stack(routes)


def _attention(
    config: MoeConfig,
    index: int,
    block: Block,
    total: torch.Tensor,
    pages: Pages,
    place: Place,
    rotary: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    tensors = block.tensors
    x = norm_reference(total, tensors["input_layernorm.weight"], config.rms_norm_eps)

    def projected(rows: torch.Tensor, which: str) -> torch.Tensor:
        out = multiply_floats_reference(rows, block.matrices[f"self_attn.{which}_proj"])
        bias = tensors.get(f"self_attn.{which}_proj.bias")
        return out if bias is None else out + bias

    qkv = torch.cat([projected(x, which) for which in "qkv"], dim=1)
    heads = heads_of(config, block)
    queries = rope_write_reference(qkv, pages, index, place, rotary, heads)
    window = config.windows[index] or ALL_KEYS
    sinks = sinks_of(config, block)
    return projected(attend_floats_reference(queries, pages, index, place, sinks, window), "o")


def feed(
    config: MoeConfig, block: Block, x: torch.Tensor, route: torch.Tensor, *, rounds: bool
) -> torch.Tensor:
    """x [N, H], route [N, k] -> what each row's experts say [N, k, H]."""
    said = torch.empty(*route.shape, config.hidden_size)
    for number in route.unique().tolist():
        rows, places = (route == number).nonzero(as_tuple=True)
        said[rows, places] = _fed(config, block, number, x[rows], rounds=rounds)
    return said


def _fed(
    config: MoeConfig, block: Block, number: int, x: torch.Tensor, *, rounds: bool
) -> torch.Tensor:
    """One expert's [n, H] of [n, H]."""
    expert: Expert = block.experts[number]
    times = _times_rounded if rounds else multiply_floats_reference
    gate_up = torch.cat([times(x, expert.gate), times(x, expert.up)], dim=1)
    if not config.is_oss:
        return times(halves_gated(gate_up), expert.down)
    biases = [
        block.tensors[f"{OSS_EXPERTS}{name}_proj_bias"][number] for name in ("gate_up", "down")
    ]
    gated = oss_gated(gate_up, biases[0], config.swiglu_limit or 0.0)
    return times(gated, expert.down) + biases[1]


def _times_rounded(x: torch.Tensor, weight: FileWeight) -> torch.Tensor:
    rows: Int8Rows = round_int8_reference(x)
    out = torch.empty(len(x), weight.shape[0])
    multiply_segment_reference(rows, Segment(weight, torch.arange(len(x)), out))
    return out
