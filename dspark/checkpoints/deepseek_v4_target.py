"""The weights of a DeepSeek-V4 target where its shards have them: mapped, not copied.

FP8 blocks and FP4 experts stay in their codes; what is small and plain is read as float32.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from dspark.checkpoints.deepseek_v4_check import (
    check_layout,
    check_scales,
    scale_of,
    wanted_tensors,
)
from dspark.checkpoints.deepseek_v4_config import ENGINES
from dspark.checkpoints.deepseek_v4_layout import block_shapes, collapse_shapes
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.checkpoints.model_folder import Folder, ModelFolder
from dspark.checkpoints.safetensors_dir import TensorInfo, mapped_tensors, tensor_infos
from dspark.checkpoints.safetensors_file import FETCH_AGAIN
from dspark.errors import CheckpointError
from dspark_kernels.cpu.file_weight import FileWeight, file_weight
from dspark_kernels.repacked_weight import FP4_GROUP

HEAD_PREFIX = "mtp."  # of its DSpark head, which a reader of its own takes
HASH_TABLE = "ffn.gate.tid2eid"
INTEGERS = ("I64", "I32")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Expert:
    """One routed expert: silu(gate x) * (up x) through down."""

    gate: FileWeight
    up: FileWeight
    down: FileWeight


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: matrices by name, small tensors by name, routed experts by number."""

    matrices: Mapping[str, FileWeight]
    tensors: Mapping[str, torch.Tensor]
    experts: Sequence[Expert]


@dataclass(frozen=True, slots=True)
class TargetWeights:
    """`matrices`: embed, head and hc_head_fn; `tensors`: the final norm and the last mixing."""

    matrices: Mapping[str, FileWeight]
    tensors: Mapping[str, torch.Tensor]
    blocks: tuple[Block, ...]


def read_target(folder: Folder, config: DeepseekV4TargetConfig) -> TargetWeights:
    """Every name, type, shape and scale is checked. Raises CheckpointError."""
    folder = ModelFolder.of(folder)
    infos = {n: i for n, i in tensor_infos(folder).items() if not n.startswith(HEAD_PREFIX)}
    dense = dense_shapes(config)
    _check(folder, infos, dense, config)
    found = mapped_tensors(folder, infos.keys())
    check_scales(found, folder)
    matrices, tensors = matrices_and_tensors(dense, found, config.scale_block)
    for layer in range(config.num_hash_layers):
        name = f"layers.{layer}.{HASH_TABLE}"
        tensors[name] = _checked_table(found[name], config, folder)
    blocks = tuple(
        block_at(f"layers.{layer}.", matrices, tensors, found, config.num_experts)
        for layer in range(config.num_layers)
    )
    return TargetWeights(matrices, tensors, blocks)


def matrices_and_tensors(
    names: Iterable[str], found: Mapping[str, torch.Tensor], scale_block: tuple[int, int]
) -> tuple[dict[str, FileWeight], dict[str, torch.Tensor]]:
    """Matrices where the file has them, and copies of all else in float32."""
    matrices: dict[str, FileWeight] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        stored = found[name]
        if (scale := found.get(scale_of(name))) is not None:
            matrices[name] = file_weight(stored, scale, *scale_block)
        elif name.endswith(("_fn", ".weight")) and stored.dim() == 2:
            plain = stored.dtype in (torch.float32, torch.bfloat16)
            matrices[name] = file_weight(stored if plain else stored.float())
        else:
            tensors[name] = stored.to(torch.float32, copy=True)
    return matrices, tensors


def dense_shapes(config: DeepseekV4TargetConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every float tensor except the routed experts' and the scales."""
    vocabulary, hidden = config.vocab_size, config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (vocabulary, hidden),
        "head.weight": (vocabulary, hidden),
        "norm.weight": (hidden,),
        **collapse_shapes(hidden, config.num_streams),
    }
    for layer in range(config.num_layers):
        block = block_shapes(config) | _compression_shapes(config, layer)
        if layer < config.num_hash_layers:
            del block["ffn.gate.bias"]
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def _compression_shapes(config: DeepseekV4TargetConfig, layer: int) -> dict[str, tuple[int, ...]]:
    ratio, selects = config.ratios[layer], config.selects[layer]
    parts = {"attn.compressor": config.head_dim} if ratio else {}
    shapes: dict[str, tuple[int, ...]] = {}
    if selects:
        parts["attn.indexer.compressor"] = config.index_dim
        queries = config.index_heads * config.index_dim
        shapes["attn.indexer.wq_b.weight"] = (queries, config.query_rank)
        shapes["attn.indexer.weights_proj.weight"] = (config.index_heads, config.hidden_size)
    for name, width in parts.items():
        columns = width * (1 + selects)  # windows that overlap have two halves
        shapes[f"{name}.wkv.weight"] = (columns, config.hidden_size)
        shapes[f"{name}.wgate.weight"] = (columns, config.hidden_size)
        shapes[f"{name}.ape"] = (ratio, columns)
        shapes[f"{name}.norm.weight"] = (width,)
    return shapes


def _check(
    folder: ModelFolder,
    infos: Mapping[str, TensorInfo],
    dense: Mapping[str, tuple[int, ...]],
    config: DeepseekV4TargetConfig,
) -> None:
    if config.num_layers * config.num_experts > len(infos):  # before generating that many names
        raise CheckpointError(f"{folder.path} lacks experts of its layers", FETCH_AGAIN)
    blocks = [f"layers.{layer}" for layer in range(config.num_layers)]
    expected = dict(wanted_tensors(infos, dense, blocks, config))
    for layer in range(config.num_hash_layers):
        shape = (config.vocab_size, config.experts_per_token)
        expected[f"layers.{layer}.{HASH_TABLE}"] = INTEGERS, shape
    check_layout(infos, expected, "the target", folder.path, ENGINES)


def _checked_table(
    table: torch.Tensor, config: DeepseekV4TargetConfig, folder: ModelFolder
) -> torch.Tensor:
    low, high = table.aminmax()
    if low < 0 or high >= config.num_experts:
        raise CheckpointError(f"{HASH_TABLE} in {folder.path} names experts that do not exist")
    return table


def block_at(
    prefix: str,
    matrices: Mapping[str, FileWeight],
    tensors: Mapping[str, torch.Tensor],
    found: Mapping[str, torch.Tensor],
    num_experts: int,
) -> Block:
    """One layer or stage, whose names begin with `prefix`."""

    def matrix(expert: int, name: str) -> FileWeight:
        base = f"{prefix}ffn.experts.{expert}.{name}"
        return file_weight(found[f"{base}.weight"], found[f"{base}.scale"], 1, FP4_GROUP)

    experts = tuple(
        Expert(gate=matrix(expert, "w1"), up=matrix(expert, "w3"), down=matrix(expert, "w2"))
        for expert in range(num_experts)
    )
    return Block(_below(matrices, prefix), _below(tensors, prefix), experts)


def _below(named: Mapping[str, T], prefix: str) -> dict[str, T]:
    return {n.removeprefix(prefix): v for n, v in named.items() if n.startswith(prefix)}
