"""Decides from a repository's list of files, before any download, whether its weights are
readable."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from dspark.checkpoints.target_architectures import DENSE
from dspark.errors import CheckpointError, DownloadError

GGUF_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# by a file's suffix, the program that reads such weights
ELSEWHERE = {
    ".onnx": ("ONNX", "onnxruntime runs them."),
    ".onnx_data": ("ONNX", "onnxruntime runs them."),
    ".h5": ("TensorFlow's form", "Look for a repository of the same model with safetensors."),
    ".msgpack": ("Flax's form", "Look for a repository of the same model with safetensors."),
    ".mlmodel": ("Core ML's form", "Look for a repository of the same model with safetensors."),
    ".pte": ("ExecuTorch's form", "Look for a repository of the same model with safetensors."),
    ".npz": ("NumPy's form", "Look for a repository of the same model with safetensors."),
    ".nemo": ("NeMo's form", "Look for a repository of the same model with safetensors."),
}
BY_TRANSFORMERS = ("mxfp4", "fp8")  # quantizations that it reads without another package


def check_files(repo_id: str, paths: Collection[str]) -> None:
    """Raises CheckpointError if no file has weights in safetensors, naming the format they have."""
    top = [path for path in paths if "/" not in path]
    has_config = "config.json" in top
    if has_config and any(path.endswith(".safetensors") for path in top):
        return
    raise _refusal(repo_id, list(paths), top, has_config=has_config)


def _refusal(
    repo_id: str, paths: list[str], top: list[str], *, has_config: bool
) -> DownloadError | CheckpointError:
    if "adapter_config.json" in top:
        return CheckpointError(
            f"{repo_id} is an adapter (LoRA), not a model",
            "Merge it into its base with peft's merge_and_unload, and save that.",
        )
    if gguf := [path for path in paths if path.endswith(".gguf")]:
        return _gguf(repo_id, gguf, has_config=has_config)
    if not has_config:
        return DownloadError(
            f"{repo_id} has no config.json", "It is not a model that dspark can read."
        )
    if pickles := [path for path in top if path.endswith(PICKLES)]:
        return CheckpointError(
            f"{repo_id} has its weights in {pickles[0]}, which could run code, and not in "
            "safetensors",
            "Look for the same model in safetensors; many repositories have it in a pull request.",
        )
    for path in paths:
        for ending, (form, hint) in ELSEWHERE.items():
            if path.endswith(ending):
                return CheckpointError(f"{repo_id} has its weights in {form}: {path}", hint)
    return CheckpointError(
        f"{repo_id} has no weights in safetensors", "It may be incomplete; ask its owner."
    )


def _gguf(repo_id: str, paths: list[str], *, has_config: bool) -> DownloadError:
    lacks = "no weights in safetensors" if has_config else "no config.json"
    if all(GGUF_PART.search(path) for path in paths):
        return DownloadError(
            f"{repo_id} has {lacks}, but GGUF files in parts",
            "Download the parts, join them with llama-gguf-split --merge, and give the result as "
            "--target MODEL.gguf.",
        )
    return DownloadError(
        f"{repo_id} has {lacks}, but GGUF files",
        "Download one and give it as --target MODEL.gguf; llama.cpp runs heads in GGUF.",
    )


def check_packing(repo_id: str, config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for weights in an unsupported quantization."""
    quantization = config.get("quantization_config")
    mlx_settings = config.get("quantization") or quantization
    if (
        isinstance(mlx_settings, dict)
        and "group_size" in mlx_settings
        and "quant_method" not in mlx_settings
    ):
        raise CheckpointError(
            f"{repo_id} is quantized by MLX", "mlx-lm runs it; or use the model in plain bf16."
        )
    if not isinstance(quantization, dict):
        return
    if config.get("model_type") in DENSE:
        from dspark.checkpoints.quantized_targets import quantized_format  # brings torch

        quantized_format(quantization)
        return
    method = str(quantization.get("quant_method"))[:40]
    if method not in BY_TRANSFORMERS:
        raise CheckpointError(
            f"{repo_id} is quantized by {method!r}, which is not supported for models of type "
            f"{str(config.get('model_type'))[:40]}",
            "Use the model in plain bf16.",
        )
