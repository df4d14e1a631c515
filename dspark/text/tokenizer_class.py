"""The class of transformers that reads a model's tokenizer."""

from typing import Any

from dspark.checkpoints.model_folder import ModelFolder

PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")
# models for which transformers takes a plain tokenizer at its word
TRUSTED = ("llama", "qwen3")


def tokenizer_class(folder: ModelFolder) -> Any:
    """What AutoTokenizer would choose; it and the configs that it asks take long to import."""
    if is_plain(folder):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def is_plain(folder: ModelFolder) -> bool:
    """Whether tokenizer.json is all there is to it, whatever the model."""
    if not all(map(folder.has, ("tokenizer.json", "tokenizer_config.json", "config.json"))):
        return False
    settings = folder.json("tokenizer_config.json")
    is_plain = settings.get("tokenizer_class") in PLAIN and "auto_map" not in settings
    return is_plain and folder.config.get("model_type") in TRUSTED
