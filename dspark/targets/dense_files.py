"""Reads a transformers directory for the dense forward: Llama, SmolLM, Mistral, Qwen2 and Qwen3."""

from typing import TYPE_CHECKING, Any

import torch

from dspark.checkpoints.deepseek_v4_config import refuse_successor
from dspark.checkpoints.files import one_line
from dspark.checkpoints.model_folder import Folder, ModelFolder
from dspark.checkpoints.quantized_targets import (
    QuantizedTensors,
    Weights,
    plain_infos,
    quantized_format,
)
from dspark.checkpoints.safetensors_dir import (
    CodedTensors,
    StoredTensors,
    check_tensors,
    tensor_infos,
)
from dspark.checkpoints.target_architectures import DENSE
from dspark.config import KVFormat
from dspark.errors import CheckpointError
from dspark.models.placement import ON_DEVICE, Placement
from dspark.targets.context import context_limit
from dspark.targets.dense import DenseTarget
from dspark.targets.dense_config import MOST_LAYERS, DenseConfig
from dspark.targets.dense_shape import expected_tensors, read_shape
from dspark.targets.stop_tokens import stop_tokens
from dspark_kernels import RotaryTable
from dspark_kernels.backend import choose_backend
from dspark_kernels.rope_frequencies import FIXED_ROPES, rope_frequencies

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

INV_FREQ = "rotary_emb.inv_freq"  # computed, though some files store it


def supports(config: "PreTrainedConfig | DenseConfig") -> bool:
    """Whether the dense forward computes this model exactly."""
    if isinstance(config, DenseConfig):
        return True
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in DENSE
        and getattr(config, "hidden_act", "silu") == "silu"
        and rope.get("rope_type", "default") in FIXED_ROPES
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and rope.get("factor", 1.0) is not None
        and not _slides(config)
    )


def _slides(config: "PreTrainedConfig") -> bool:
    if config.model_type == "mistral":
        return getattr(config, "sliding_window", None) is not None
    return "sliding_attention" in (getattr(config, "layer_types", None) or ())


def rotary_table(config: Any, device: torch.device, dtype: torch.dtype) -> RotaryTable:
    """Raises CheckpointError where the rope makes no sense."""
    head_dim = read_shape(config).head_dim
    try:
        frequencies, scaling = rope_frequencies(config.rope_parameters, head_dim)
        return RotaryTable(frequencies.to(device), scaling, dtype)
    except (TypeError, ValueError, KeyError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"the target's rope makes no sense ({one_line(error)})") from error


def load_dense(
    directory: Folder,
    config: "PreTrainedConfig | DenseConfig",
    *,
    tap_layers: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    prepack: bool = True,
    placement: Placement = ON_DEVICE,
    kv: KVFormat = "auto",
) -> DenseTarget:
    """Read a model directory. Raises CheckpointError naming a missing or surplus tensor."""
    folder = ModelFolder.of(directory)
    infos = {n: info for n, info in tensor_infos(folder).items() if not n.endswith(INV_FREQ)}
    how = quantized_format(getattr(config, "quantization_config", None))
    plain = infos if how is None else plain_infos(infos, how)
    check_tensors(plain, *expected_tensors(config), str(folder.path))
    keep_quantized = choose_backend(device).name == "triton"
    tensors: Weights  # read one after the other, as the layers are built
    if how is None:
        kind = CodedTensors if keep_quantized else StoredTensors
        tensors = kind(folder, names=infos, device=device, dtype=dtype)
    else:
        stored = StoredTensors(folder, names=infos, device=device)
        tensors = QuantizedTensors(stored, infos, how, keep_quantized=keep_quantized, dtype=dtype)
    return DenseTarget(
        read_shape(config),
        tensors,
        rotary_table(config, device, dtype),
        is_tied=config.tie_word_embeddings,
        context_limit=context_limit(config),
        tap_layers=tap_layers,
        stop_token_ids=stop_tokens(folder, config),
        prepack=prepack,
        placement=placement,
        kv=kv,
    )


def read_config(folder: Folder) -> "PreTrainedConfig":
    """The target's config. Raises CheckpointError if it is missing or unknown."""
    from transformers import AutoConfig

    folder = ModelFolder.of(folder)
    directory, depth = folder.path, folder.config.get("num_hidden_layers")
    if isinstance(depth, int | float) and depth > MOST_LAYERS:  # transformers makes a list of it
        raise CheckpointError(f"the config in {directory} states {depth} layers")
    refuse_successor(folder.config)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        return config
    except Exception as error:  # transformers raises any of these for invalid configs
        raise CheckpointError(
            f"{directory} holds no model that transformers knows ({one_line(error)})",
            "A target is a folder with config.json and safetensors files.",
        ) from error
