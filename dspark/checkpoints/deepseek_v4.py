"""The DSpark head in a DeepSeek-V4 target's own shards: only `mtp.*`, found by the index."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dspark.checkpoints.deepseek_v4_check import (
    check_layout,
    check_scales,
    scale_of,
    wanted_tensors,
)
from dspark.checkpoints.deepseek_v4_config import (
    ENGINES,
    DeepseekV4HeadConfig,
    dense_shapes,
)
from dspark.checkpoints.deepseek_v4_layout import expert_shapes
from dspark.checkpoints.deepseek_v4_target import TargetWeights, block_at, matrices_and_tensors
from dspark.checkpoints.model_folder import Folder, ModelFolder
from dspark.checkpoints.safetensors_dir import (
    TensorInfo,
    iterate_tensors,
    mapped_tensors,
    tensor_infos,
)
from dspark.errors import CheckpointError
from dspark_kernels.cpu.file_weight import FileWeight, file_weight
from dspark_kernels.quantized_weight import QuantizedWeight
from dspark_kernels.repacked_weight import FP4_GROUP, e8m0, from_fp4, from_fp8

PREFIX = "mtp."
STAGE = re.compile(r"mtp\.(\d{1,3})\.")
EXPERT = re.compile(r"mtp\.(\d+)\.ffn\.experts\.(\d+)\.(w[123])")
ExpertWeight = QuantizedWeight | FileWeight


@dataclass(frozen=True, slots=True)
class DeepseekV4Weights:
    """`dense`: de-quantised tensors by their name in the file; `experts`: of each stage, in FP4, by
    the name of the matrix and then by expert; a FileWeight is still in its mapped file.

    Tensors that route, mix streams or normalise are float32, as in the target.
    """

    dense: Mapping[str, torch.Tensor]
    experts: tuple[Mapping[str, Sequence[ExpertWeight]], ...]


@dataclass(frozen=True, slots=True)
class MappedHead:
    """`stages` end with what makes one state of the streams; `main_proj` [H, T * H] takes taps in;
    Markov tables [V, r], confidence float32 [1, H + r]."""

    stages: TargetWeights
    main_proj: FileWeight
    main_norm: torch.Tensor
    markov_w1: FileWeight
    markov_w2: FileWeight
    confidence: torch.Tensor


def read_own_config(folder: Folder) -> DeepseekV4HeadConfig:
    """Raises CheckpointError if the target has no head, or one that cannot be read."""
    folder = ModelFolder.of(folder)
    return _config(folder, tensor_infos(folder, PREFIX))


def read_own_head(
    folder: Folder, *, device: torch.device, dtype: torch.dtype, maps_experts: bool = False
) -> tuple[DeepseekV4HeadConfig, DeepseekV4Weights]:
    """Every name, type and shape is checked before a tensor is read; besides the result, one tensor
    at a time is in memory. `maps_experts`: for a CPU, routed experts stay where the files have
    them."""
    folder = ModelFolder.of(folder)
    infos = tensor_infos(folder, PREFIX)
    config = _config(folder, infos)
    _check(infos, config, folder.path)
    dense: dict[str, torch.Tensor] = {}
    experts: dict[tuple[int, int, str], ExpertWeight] = {}
    names = set(infos)
    if maps_experts:
        experts |= _mapped_experts(folder, config)
        names = {name for name in infos if not EXPERT.match(name)}
    waiting: dict[str, torch.Tensor] = {}  # of two halves, the first one read
    for name, tensor in iterate_tensors(folder, PREFIX, names):
        if scale_of(name) not in infos and not name.endswith(".scale"):
            dense[name] = _typed(name, tensor.to(device), dtype)
            continue
        waiting[name] = tensor.to(device)
        base = name.removesuffix(".scale").removesuffix(".weight")
        if not {f"{base}.weight", f"{base}.scale"} <= waiting.keys():
            continue
        weight, scale = waiting.pop(f"{base}.weight"), e8m0(waiting.pop(f"{base}.scale"))
        if match := EXPERT.fullmatch(base):
            stage, expert, matrix = match.groups()
            experts[int(stage), int(expert), matrix] = from_fp4(weight, scale)
        else:
            full = from_fp8(weight, scale, config.scale_block).dequantized(torch.float32)
            dense[f"{base}.weight"] = _typed(f"{base}.weight", full, dtype)
    return config, DeepseekV4Weights(dense, _by_stage(experts, config))


def read_mapped_head(folder: Folder) -> tuple[DeepseekV4HeadConfig, MappedHead]:
    """For a CPU, all matrices where the files have them; checked as by read_own_head."""
    folder = ModelFolder.of(folder)
    infos = tensor_infos(folder, PREFIX)
    config = _config(folder, infos)
    _check(infos, config, folder.path)
    found = mapped_tensors(folder, infos.keys())
    check_scales(found, folder)
    parts = matrices_and_tensors(dense_shapes(config), found, config.scale_block)
    matrices, tensors = parts
    stages = tuple(
        block_at(f"{PREFIX}{stage}.", matrices, tensors, found, config.num_experts)
        for stage in range(config.num_stages)
    )
    first, last = stages[0], stages[-1]
    return config, MappedHead(
        stages=TargetWeights(last.matrices, last.tensors, stages),
        main_proj=first.matrices["main_proj.weight"],
        main_norm=first.tensors["main_norm.weight"],
        markov_w1=last.matrices["markov_head.markov_w1.weight"],
        markov_w2=last.matrices["markov_head.markov_w2.weight"],
        confidence=last.matrices["confidence_head.proj.weight"].dequantized(),
    )


def _mapped_experts(
    folder: ModelFolder, config: DeepseekV4HeadConfig
) -> dict[tuple[int, int, str], FileWeight]:
    places = {
        (stage, expert, matrix): f"{PREFIX}{stage}.ffn.experts.{expert}.{matrix}"
        for stage in range(config.num_stages)
        for expert in range(config.num_experts)
        for matrix in expert_shapes(config)
    }
    ends = (".weight", ".scale")
    found = mapped_tensors(folder, {base + end for base in places.values() for end in ends})
    check_scales(found, folder)
    return {
        place: file_weight(found[f"{base}.weight"], found[f"{base}.scale"], 1, FP4_GROUP)
        for place, base in places.items()
    }


def _by_stage(
    experts: Mapping[tuple[int, int, str], ExpertWeight], config: DeepseekV4HeadConfig
) -> tuple[Mapping[str, Sequence[ExpertWeight]], ...]:
    return tuple(
        {
            name: [experts[stage, expert, name] for expert in range(config.num_experts)]
            for name in expert_shapes(config)
        }
        for stage in range(config.num_stages)
    )


def _config(folder: ModelFolder, infos: Mapping[str, TensorInfo]) -> DeepseekV4HeadConfig:
    stages = {int(match[1]) for name in infos if (match := STAGE.match(name))}
    if not stages or stages != set(range(len(stages))):
        raise CheckpointError(
            f"the config in {folder.path} describes a DSpark head, but its tensors are missing",
            "Fetch the shards that hold mtp.*, or use --draft none.",
        )
    return DeepseekV4HeadConfig.from_json(folder.config, len(stages))


def _typed(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Matrices in the dtype of the pass; norms, streams, routing and small heads in float32."""
    is_matrix = name.endswith(".weight") and tensor.dim() == 2
    in_float32 = (".gate.", ".markov_head.", ".confidence_head.")
    return tensor.to(
        dtype if is_matrix and not any(p in name for p in in_float32) else torch.float32
    )


def _check(infos: Mapping[str, TensorInfo], config: DeepseekV4HeadConfig, folder: Path) -> None:
    """Raises CheckpointError naming the first tensor that is missing, unexpected or different."""
    if config.num_stages * config.num_experts > len(infos):  # before generating that many names
        raise CheckpointError(f"{folder} lacks experts of its DSpark head", ENGINES)
    stages = [f"mtp.{stage}" for stage in range(config.num_stages)]
    expected = dict(wanted_tensors(infos, dense_shapes(config), stages, config))
    check_layout(infos, expected, "the DSpark head", folder, ENGINES)
