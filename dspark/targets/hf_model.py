"""Loads a language model by transformers; of a multimodal checkpoint, its text part."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.utils import logging

from dspark.checkpoints.files import one_line
from dspark.checkpoints.model_folder import Folder, ModelFolder
from dspark.checkpoints.safetensors_dir import StoredTensors, has_codes, tensor_infos
from dspark.errors import CheckpointError
from dspark.targets.dense_files import read_config

# the text part of multimodal checkpoints, newer layouts first
TEXT_NAMES = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}


def read_hf_model(directory: Folder, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Raises CheckpointError if transformers cannot load all of it."""
    folder = ModelFolder.of(directory)
    directory = folder.path
    tensor_infos(folder)  # valid headers, and no pickles
    config = read_config(folder)
    check_text_model(directory, config)
    model: Any
    report: Any
    try:
        model, report = _from_pretrained(folder, config, dtype)
        # FP8 files leave the rest in bfloat16, whatever was asked for
        is_full = dtype == torch.float32 and not getattr(model, "is_quantized", False)
        model = model.to(device, dtype) if is_full else model.to(device)
    except ImportError as error:
        raise CheckpointError(
            f"{directory} is stored in a way that needs another package ({one_line(error)})",
            "Use the model in plain bf16, or install the package it names.",
        ) from error
    except Exception as error:  # transformers raises any of these for invalid files
        raise CheckpointError(
            f"{directory} cannot be loaded ({one_line(error)})", "Download the model again."
        ) from error
    if missing := sorted(report["missing_keys"]):  # transformers would initialise them at random
        raise CheckpointError(
            f"{directory} lacks {', '.join(missing[:4])}{' ...' * (len(missing) > 4)}",
            "config.json and the weights do not belong together.",
        )
    return model


def check_text_model(directory: Path, config: PreTrainedConfig) -> None:
    """Raises CheckpointError for a model that transformers does not load as a language model."""
    if text_part(config) is None and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(
            f"{directory} is of the kind {config.model_type}, which transformers does not load as "
            "a text model",
            "Only text models are decoded, and the text part of most multimodal ones.",
        )


def _from_pretrained(folder: ModelFolder, config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    choice: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    if has_codes(folder):
        return _from_codes(folder, config, dtype, choice)
    if (text := text_part(config)) is None:
        return AutoModelForCausalLM.from_pretrained(folder.path, output_loading_info=True, **choice)
    choice |= {"config": text, "key_mapping": TEXT_NAMES}
    verbosity = logging.get_verbosity()
    # tensors of the vision and audio towers are left out on purpose
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        return AutoModelForCausalLM.from_pretrained(folder.path, output_loading_info=True, **choice)
    finally:
        logging.set_verbosity(verbosity)


def _from_codes(
    folder: ModelFolder, config: PreTrainedConfig, dtype: torch.dtype, choice: dict[str, Any]
) -> Any:
    """Of a GGUF's codes, which transformers does not know, the numbers."""
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    values = dict(StoredTensors(folder, dtype=dtype))
    model, report = kind.from_pretrained(
        None, config=config, state_dict=values, output_loading_info=True, **choice
    )
    model.generation_config = GenerationConfig.from_pretrained(folder.path)
    return model, report


def text_part(config: PreTrainedConfig) -> PreTrainedConfig | None:
    """The config of a multimodal model's language model, if it is a separate model."""
    text: PreTrainedConfig = config.get_text_config()
    if text is config or type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    text.tie_word_embeddings = config.tie_word_embeddings  # the whole model uses its own config
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        text.quantization_config = quantization
    return text


def input_embeddings(model: Any) -> torch.Tensor:
    """[V, H] as the first layer reads them: Gemma scales the stored ones."""
    module = model.get_input_embeddings()
    weight: torch.Tensor = module.weight
    if type(module) is nn.Embedding:
        return weight
    with torch.no_grad():
        read: torch.Tensor = module(torch.arange(len(weight), device=weight.device))
    return read


def final_norm(model: Any) -> nn.Module | None:
    """The norm before the output head, found by the architecture's name for it."""
    base = model.base_model
    base = getattr(base, "language_model", base)
    norm: nn.Module | None = getattr(base, "norm", None)
    return norm


DEFAULT_THETA = 10_000.0


def rope_theta(target: Any) -> float:
    """Head size of the layers with full attention, if others have a window: the head's too."""
    parameters = getattr(target, "rope_parameters", None) or {}
    parameters = parameters.get("full_attention", parameters)
    return float(parameters.get("rope_theta", DEFAULT_THETA))
