"""Chooses the implementation of a target: on a CPU `stored` for the codes of a GGUF, our own
DeepSeek-V4, `moe` for gpt-oss and Qwen3-MoE; `dense` where it is exact; otherwise transformers."""

import torch

from dspark.checkpoints.deepseek_v4_target_config import is_published_layout
from dspark.checkpoints.model_folder import Folder, ModelFolder
from dspark.checkpoints.moe_config import is_moe_layout
from dspark.config import KVFormat
from dspark.kvcache.caches import check_numbers
from dspark.targets.base import Target
from dspark.targets.dense_config import DenseConfig, read_dense_config
from dspark.targets.dense_files import load_dense, read_config, supports
from dspark.targets.stop_tokens import stop_tokens
from dspark_kernels.backend import choose_backend


def has_kernels(device: torch.device) -> bool:
    return choose_backend(device).name == "triton"


def load_target(
    directory: Folder,
    *,
    tap_layers: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    prepack: bool = True,
    as_stored: bool = False,
    kv: KVFormat = "auto",
) -> Target:
    """Read the model in `directory`, tapping the given layers. `as_stored`: on a CPU, weights in
    the codes of a GGUF are multiplied with as they are, and `dtype` is that of rows; rows meet
    experts in FP4 in 8 bits. Raises InputError for a `kv` that this target does not have."""
    folder = ModelFolder.of(directory)
    if device.type == "cpu" and dtype == torch.float32 and is_published_layout(folder.config):
        from dspark.targets.deepseek_v4_native import load_deepseek_v4

        check_numbers(kv)
        return load_deepseek_v4(folder, tap_layers=tap_layers, rounds=as_stored)
    if device.type == "cpu" and dtype == torch.float32 and is_moe_layout(folder.config):
        from dspark.targets.moe import load_moe, runs_here

        if runs_here(folder):
            check_numbers(kv)
            return load_moe(folder, tap_layers=tap_layers, rounds=as_stored)
    if device.type == "cuda" and is_published_layout(folder.config) and has_kernels(device):
        from dspark.targets.deepseek_v4_native import load_deepseek_v4

        check_numbers(kv)
        return load_deepseek_v4(folder, tap_layers=tap_layers, device=device)
    config = read_dense_config(folder) or read_config(folder)
    if as_stored and device.type == "cpu":
        from dspark.targets.stored import load_stored, stored_runtime

        if (runtime := stored_runtime(folder, config)) is not None:
            check_numbers(kv)
            return load_stored(folder, config, runtime, tap_layers=tap_layers)
    if isinstance(config, DenseConfig) or supports(config):
        return load_dense(
            *(folder, config),
            tap_layers=tap_layers,
            device=device,
            dtype=dtype,
            prepack=prepack,
            kv=kv,
        )
    check_numbers(kv)
    from dspark.targets.hf import load_hf
    from dspark.targets.hf_model import check_text_model

    check_text_model(folder.path, config)
    return load_hf(
        folder,
        tap_layers=tap_layers,
        stop_token_ids=stop_tokens(folder, config),
        device=device,
        dtype=dtype,
    )
