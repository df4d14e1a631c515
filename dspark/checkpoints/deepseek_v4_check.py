"""Whether a folder holds DeepSeek-V4's tensors as they are published, of target or head."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from dspark.checkpoints.deepseek_v4_layout import BlockSizes, expert_shapes
from dspark.checkpoints.model_folder import ModelFolder
from dspark.checkpoints.safetensors_dir import FLOATS, TensorInfo
from dspark.checkpoints.safetensors_file import FETCH_AGAIN
from dspark.errors import CheckpointError
from dspark_kernels.cpu.file_weight import has_invalid_scale
from dspark_kernels.repacked_weight import FP4_GROUP

SCALES = ("F8_E8M0", "U8")
BYTES = ("I8", "U8")
Shapes = Mapping[str, tuple[int, ...]]
Wanted = tuple[tuple[str, ...], tuple[int, ...]]  # types and shape


def scale_of(name: str) -> str:
    return f"{name.removesuffix('.weight')}.scale"


def wanted_tensors(
    infos: Mapping[str, TensorInfo], dense: Shapes, blocks: Iterable[str], config: BlockSizes
) -> Iterator[tuple[str, Wanted]]:
    """Name -> types and shape. A dense matrix may be quantised, or plain without a scale; `blocks`
    are the prefixes of those with routed experts."""
    rows, columns = config.scale_block
    for name, shape in dense.items():
        if scale_of(name) not in infos:
            yield name, (FLOATS, shape)
            continue
        yield name, (("F8_E4M3",), shape)
        yield scale_of(name), (SCALES, (-(-shape[0] // rows), -(-shape[1] // columns)))
    for block in blocks:
        for expert in range(config.num_experts):
            for matrix, (height, width) in expert_shapes(config).items():
                name = f"{block}.ffn.experts.{expert}.{matrix}"
                yield f"{name}.weight", (BYTES, (height, width // 2))
                yield f"{name}.scale", (SCALES, (height, width // FP4_GROUP))


def check_layout(
    infos: Mapping[str, TensorInfo], expected: Mapping[str, Wanted], what: str, path: Path, way: str
) -> None:
    """Raises CheckpointError naming the first tensor that is missing, unexpected or different."""
    wrong = [
        *(f"it lacks {name}" for name in expected if name not in infos),
        *(f"it has the unexpected {name[:80]!r}" for name in infos if name not in expected),
        *(
            f"{name} is {info.dtype} {list(info.shape)}, not {types[0]} {list(shape)}"
            for name, (types, shape) in expected.items()
            if (info := infos.get(name)) and (info.dtype not in types or info.shape != shape)
        ),
    ]
    if wrong:
        raise CheckpointError(f"{what} in {path} is damaged or of another kind: {wrong[0]}", way)


def check_scales(found: Mapping[str, torch.Tensor], folder: ModelFolder) -> None:
    """Raises CheckpointError for a scale that is no number, or too small for one."""
    for name, tensor in found.items():
        if name.endswith(".scale") and has_invalid_scale(tensor.view(torch.uint8)):
            raise CheckpointError(
                f"{name} in {folder.path} holds a scale that is no number", FETCH_AGAIN
            )
