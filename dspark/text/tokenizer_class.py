"""The class of transformers that reads a model's tokenizer."""

from pathlib import Path
from typing import Any

from dspark.checkpoints.files import read_json

PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")
# models for which transformers takes a plain tokenizer at its word
TRUSTED = ("llama", "qwen3")


def tokenizer_class(directory: Path) -> Any:
    """What AutoTokenizer would choose; it and the configs that it asks take long to import."""
    if is_plain(directory):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def is_plain(directory: Path) -> bool:
    """Whether tokenizer.json is all there is to it, whatever the model."""
    needed = [directory / name for name in ("tokenizer.json", "tokenizer_config.json")]
    config = directory / "config.json"
    if not all(path.is_file() for path in (*needed, config)):
        return False
    settings = read_json(needed[1])
    is_plain = settings.get("tokenizer_class") in PLAIN and "auto_map" not in settings
    return is_plain and read_json(config).get("model_type") in TRUSTED
