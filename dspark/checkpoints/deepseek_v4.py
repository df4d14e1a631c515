"""The DSpark head in a DeepSeek-V4 target's own shards: only `mtp.*`, found by the index."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dspark.checkpoints.deepseek_v4_config import (
    ENGINES,
    DeepseekV4HeadConfig,
    dense_shapes,
    expert_shapes,
)
from dspark.checkpoints.files import read_json
from dspark.checkpoints.fp4_fp8 import Fp4Experts, dequantize_fp8
from dspark.checkpoints.safetensors_dir import FLOATS, TensorInfo, iterate_tensors, tensor_infos
from dspark.errors import CheckpointError

PREFIX = "mtp."
STAGE = re.compile(r"mtp\.(\d{1,3})\.")
EXPERT = re.compile(r"mtp\.(\d+)\.ffn\.experts\.(\d+)\.(w[123])\.(weight|scale)")
FP4_RUN = 32  # columns that share a scale
SCALES = ("F8_E8M0", "U8")
BYTES = ("I8", "U8")


@dataclass(frozen=True, slots=True)
class DeepseekV4Weights:
    """`dense`: de-quantised tensors by their name in the file; `experts`: of each stage, as stored.

    Tensors that route, mix streams or normalise are float32, as in the target.
    """

    dense: Mapping[str, torch.Tensor]
    experts: tuple[Mapping[str, Fp4Experts], ...]


def read_own_config(folder: Path) -> DeepseekV4HeadConfig:
    """Raises CheckpointError if the target has no head, or one that cannot be read."""
    return _config(folder, tensor_infos(folder, PREFIX))


def read_own_head(
    folder: Path, *, device: torch.device, dtype: torch.dtype
) -> tuple[DeepseekV4HeadConfig, DeepseekV4Weights]:
    """Every name, type and shape is checked before a tensor is read; besides the result, one tensor
    at a time is in memory."""
    infos = tensor_infos(folder, PREFIX)
    config = _config(folder, infos)
    _check(infos, config, folder)
    experts = tuple(_empty_experts(config, device) for _ in range(config.num_stages))
    dense: dict[str, torch.Tensor] = {}
    waiting: dict[
        str, torch.Tensor
    ] = {}  # halves of a quantised weight, whose other half may be in another file
    for name, tensor in iterate_tensors(folder, PREFIX):
        if match := EXPERT.fullmatch(name):
            stage, expert, matrix, part = match.groups()
            packed = experts[int(stage)][matrix]
            target = packed.packed if part == "weight" else packed.scale
            target[int(expert)] = tensor.view(torch.uint8)
        elif _scale_of(name) in infos or name.endswith(".scale"):
            waiting[name] = tensor
        else:
            dense[name] = _typed(name, tensor.to(device), dtype)
        base = name.removesuffix(".scale").removesuffix(".weight")
        if {f"{base}.weight", f"{base}.scale"} <= waiting.keys():
            weight, scale = waiting.pop(f"{base}.weight"), waiting.pop(f"{base}.scale")
            full = dequantize_fp8(weight.to(device), scale.to(device), config.scale_block)
            dense[f"{base}.weight"] = _typed(f"{base}.weight", full, dtype)
    return config, DeepseekV4Weights(dense, experts)


def _config(folder: Path, infos: Mapping[str, TensorInfo]) -> DeepseekV4HeadConfig:
    stages = {int(match[1]) for name in infos if (match := STAGE.match(name))}
    if not stages or stages != set(range(len(stages))):
        raise CheckpointError(
            f"the config in {folder} describes a DSpark head, but its tensors are missing",
            "Fetch the shards that hold mtp.*, or use --draft none.",
        )
    return DeepseekV4HeadConfig.from_json(read_json(folder / "config.json"), len(stages))


def _empty_experts(config: DeepseekV4HeadConfig, device: torch.device) -> dict[str, Fp4Experts]:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(config.num_experts, *shape, dtype=torch.uint8, device=device)

    return {
        name: Fp4Experts(empty(rows, columns // 2), empty(rows, columns // FP4_RUN))
        for name, (rows, columns) in expert_shapes(config).items()
    }


def _typed(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Matrices in the dtype of the pass; norms, streams, routing and small heads in float32."""
    is_matrix = name.endswith(".weight") and tensor.dim() == 2
    in_float32 = (".gate.", ".markov_head.", ".confidence_head.")
    return tensor.to(
        dtype if is_matrix and not any(p in name for p in in_float32) else torch.float32
    )


def _scale_of(name: str) -> str:
    return f"{name.removesuffix('.weight')}.scale"


def _check(infos: Mapping[str, TensorInfo], config: DeepseekV4HeadConfig, folder: Path) -> None:
    """Raises CheckpointError naming the first tensor that is missing, unexpected or different."""
    if config.num_stages * config.num_experts > len(infos):  # before generating that many names
        raise CheckpointError(f"{folder} lacks experts of its DSpark head", ENGINES)
    wanted = dict(_wanted(infos, config))
    wrong = [
        *(f"it lacks {name}" for name in wanted if name not in infos),
        *(f"it has the unexpected {name[:80]!r}" for name in infos if name not in wanted),
        *(
            f"{name} is {found.dtype} {list(found.shape)}, not {types[0]} {list(shape)}"
            for name, (types, shape) in wanted.items()
            if (found := infos.get(name)) and (found.dtype not in types or found.shape != shape)
        ),
    ]
    if wrong:
        raise CheckpointError(
            f"the DSpark head in {folder} is damaged or of another kind: {wrong[0]}", ENGINES
        )


def _wanted(
    infos: Mapping[str, TensorInfo], config: DeepseekV4HeadConfig
) -> Iterator[tuple[str, tuple[tuple[str, ...], tuple[int, ...]]]]:
    """Name -> types and shape. A dense matrix may be quantised, or plain without a scale."""
    rows, columns = config.scale_block
    for name, shape in dense_shapes(config).items():
        if _scale_of(name) not in infos:
            yield name, (FLOATS, shape)
            continue
        yield name, (("F8_E4M3",), shape)
        yield _scale_of(name), (SCALES, (-(-shape[0] // rows), -(-shape[1] // columns)))
    for stage in range(config.num_stages):
        for expert in range(config.num_experts):
            for matrix, (height, width) in expert_shapes(config).items():
                name = f"mtp.{stage}.ffn.experts.{expert}.{matrix}"
                yield f"{name}.weight", (BYTES, (height, width // 2))
                yield f"{name}.scale", (SCALES, (height, width // FP4_RUN))
