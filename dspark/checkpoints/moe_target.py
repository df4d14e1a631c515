"""The weights of gpt-oss and Qwen3-MoE where their shards have them: mapped, not copied.

Experts in MXFP4 or FP8 stay in their codes, matrices in bfloat16; what is small is float32.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch

from dspark.checkpoints.deepseek_v4_check import Wanted, check_layout
from dspark.checkpoints.deepseek_v4_target import Block, Expert, TargetWeights
from dspark.checkpoints.model_folder import Folder, ModelFolder
from dspark.checkpoints.moe_config import BLOCK, WAY, MoeConfig
from dspark.checkpoints.safetensors_dir import FLOATS, TensorInfo, mapped_tensors, tensor_infos
from dspark.checkpoints.safetensors_file import FETCH_AGAIN
from dspark.errors import CheckpointError
from dspark_kernels.cpu.file_weight import LARGEST_SCALE, FileWeight, file_weight
from dspark_kernels.repacked_weight import FP4_GROUP

EMBEDDING, HEAD, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
OSS_EXPERTS = "mlp.experts."
SCALE = "_scale_inv"  # behind the name of a matrix in FP8
PARTS = ("gate_proj", "up_proj", "down_proj")


def read_moe(folder: Folder, config: MoeConfig) -> TargetWeights:
    """Every name, type and shape is checked, and that scales are numbers. Raises
    CheckpointError."""
    folder = ModelFolder.of(folder)
    infos = tensor_infos(folder)
    if not config.is_oss and config.num_layers * config.num_experts > len(infos):
        raise CheckpointError(f"{folder.path} lacks experts of its layers", FETCH_AGAIN)
    check_layout(infos, dict(_wanted(infos, config)), "the target", folder.path, WAY)
    found = mapped_tensors(folder, infos.keys())
    _check_scales(found, folder)

    def matrix(name: str) -> FileWeight:
        scales = found.get(name + SCALE)
        if scales is not None:
            return file_weight(found[name], scales.float(), *BLOCK)
        stored = found[name]
        return file_weight(stored if stored.dtype != torch.float16 else stored.float())

    named = {EMBEDDING: matrix(EMBEDDING)}
    named[HEAD] = named[EMBEDDING] if config.is_tied and HEAD not in found else matrix(HEAD)
    blocks = tuple(_block(index, found, matrix, config) for index in range(config.num_layers))
    return TargetWeights(named, {FINAL_NORM: found[FINAL_NORM].float()}, blocks)


def _block(
    index: int,
    found: Mapping[str, torch.Tensor],
    matrix: Callable[[str], FileWeight],
    config: MoeConfig,
) -> Block:
    prefix = f"model.layers.{index}."
    matrices = {name: matrix(f"{prefix}{name}.weight") for name in _matrices(config)}
    tensors = {name: found[prefix + name].to(torch.float32, copy=True) for name in _vectors(config)}
    if config.is_oss:
        experts = _oss_experts(f"{prefix}{OSS_EXPERTS}", found, config)
    else:
        experts = tuple(
            Expert(*(matrix(f"{prefix}mlp.experts.{each}.{part}.weight") for part in PARTS))
            for each in range(config.num_experts)
        )
    return Block(matrices, tensors, experts)


def _oss_experts(
    prefix: str, found: Mapping[str, torch.Tensor], config: MoeConfig
) -> tuple[Expert, ...]:
    """Gate and up take turns in one matrix, of which an Expert has the halves."""

    def weights(name: str) -> list[FileWeight]:
        blocks, scales = (found[f"{prefix}{name}_{kind}"] for kind in ("blocks", "scales"))
        pairs = zip(blocks.flatten(2), scales, strict=True)
        return [file_weight(codes, scale, 1, FP4_GROUP) for codes, scale in pairs]

    inner = config.expert_size
    return tuple(
        Expert(both.rows(0, inner), both.rows(inner, 2 * inner), down)
        for both, down in zip(weights("gate_up_proj"), weights("down_proj"), strict=True)
    )


def _matrices(config: MoeConfig) -> dict[str, tuple[int, int]]:
    """Of a layer, name -> shape."""
    hidden, wide = config.hidden_size, config.num_heads * config.head_dim
    narrow = config.num_kv_heads * config.head_dim
    return {
        "self_attn.q_proj": (wide, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, wide),
        router_of(config): (config.num_experts, hidden),
    }


def router_of(config: MoeConfig) -> str:
    return "mlp.router" if config.is_oss else "mlp.gate"


def _vectors(config: MoeConfig) -> dict[str, tuple[int, ...]]:
    """What of a layer is read as float32, name -> shape."""
    hidden = config.hidden_size
    norms = ("input_layernorm", "post_attention_layernorm")
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (hidden,) for name in norms}
    matrices = _matrices(config)
    if config.has_bias:
        biased = [name for name in matrices if name.startswith("self_attn")]
        shapes |= {f"{name}.bias": matrices[name][:1] for name in biased}
    if not config.is_oss:
        names = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
        return shapes | dict.fromkeys(names, (config.head_dim,))
    count = config.num_experts
    return shapes | {
        "self_attn.sinks": (config.num_heads,),
        "mlp.router.bias": (count,),
        f"{OSS_EXPERTS}gate_up_proj_bias": (count, 2 * config.expert_size),
        f"{OSS_EXPERTS}down_proj_bias": (count, hidden),
    }


def wanted_tensors(config: MoeConfig) -> dict[str, Wanted]:
    """Of a release without FP8: name -> types and shape."""
    return dict(_wanted({}, config))


def wanted_bytes(config: MoeConfig) -> int:
    """Of a release whose plain tensors are bfloat16."""
    wanted = wanted_tensors(config).values()
    return sum(math.prod(shape) * (2 - ("U8" in types)) for types, shape in wanted)


def _wanted(infos: Mapping[str, TensorInfo], config: MoeConfig) -> Iterator[tuple[str, Wanted]]:
    """Name -> types and shape."""
    hidden, inner, count = config.hidden_size, config.expert_size, config.num_experts
    table = (config.vocab_size, hidden)
    yield EMBEDDING, (FLOATS, table)
    if not config.is_tied or HEAD in infos:
        yield HEAD, (FLOATS, table)
    yield FINAL_NORM, (FLOATS, (hidden,))
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        for name, shape in _vectors(config).items():
            yield prefix + name, (FLOATS, shape)
        matrices = {f"{prefix}{name}.weight": shape for name, shape in _matrices(config).items()}
        if config.is_oss:
            for name, height, width in (
                ("gate_up_proj", 2 * inner, hidden),
                ("down_proj", hidden, inner),
            ):
                groups = (count, height, width // FP4_GROUP)
                codes = (*groups, FP4_GROUP // 2)
                yield f"{prefix}{OSS_EXPERTS}{name}_blocks", (("U8",), codes)
                yield f"{prefix}{OSS_EXPERTS}{name}_scales", (("U8",), groups)
        else:
            for expert in range(count):
                for part, shape in zip(
                    PARTS, (*((inner, hidden),) * 2, (hidden, inner)), strict=True
                ):
                    matrices[f"{prefix}mlp.experts.{expert}.{part}.weight"] = shape
        for name, shape in matrices.items():
            yield from _plain_or_fp8(name, shape, infos)


def _plain_or_fp8(
    name: str, shape: tuple[int, int], infos: Mapping[str, TensorInfo]
) -> Iterator[tuple[str, Wanted]]:
    if name + SCALE not in infos:
        yield name, (FLOATS, shape)
        return
    yield name, (("F8_E4M3",), shape)
    blocks = [-(-size // block) for size, block in zip(shape, BLOCK, strict=True)]
    yield name + SCALE, (FLOATS, (blocks[0], blocks[1]))


def _check_scales(found: Mapping[str, torch.Tensor], folder: ModelFolder) -> None:
    for name, tensor in found.items():
        is_wrong = False
        if name.endswith("_scales"):
            is_wrong = bool(tensor.max() > LARGEST_SCALE)
        elif name.endswith(SCALE):
            is_wrong = not bool(tensor.float().isfinite().all())
        if is_wrong:
            raise CheckpointError(
                f"{name} in {folder.path} holds a scale that is no number", FETCH_AGAIN
            )
