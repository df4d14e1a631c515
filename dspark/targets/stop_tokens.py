"""The tokens that end an answer, as a model's files state them."""

from pathlib import Path
from typing import Any

from dspark.checkpoints.model_folder import GENERATION, Folder, ModelFolder
from dspark.errors import CheckpointError


def stop_tokens(folder: Folder, config: Any) -> frozenset[int]:
    """Those of generation_config.json, or if it states none, of config.json or its text part.

    An id outside the vocabulary (such as -1) is ignored.
    """
    folder = ModelFolder.of(folder)
    text = config.get_text_config()
    stated = [
        folder.json(GENERATION).get("eos_token_id") if folder.has(GENERATION) else None,
        getattr(config, "eos_token_id", None),
        getattr(text, "eos_token_id", None),
    ]
    size = text.vocab_size
    ids = (frozenset(_ids(each, folder.path)) for each in stated)
    inside = (frozenset(i for i in each if 0 <= i < size) for each in ids)
    return next((each for each in inside if each), frozenset())


def _ids(stated: Any, directory: Path) -> list[int]:
    """A number, also in quotes, a list of them, or nothing."""
    token_ids = []
    for each in stated if isinstance(stated, list) else [stated]:
        is_quoted = isinstance(each, str) and each.strip().removeprefix("-").isdecimal()
        if is_quoted or (isinstance(each, int) and not isinstance(each, bool)):
            token_ids.append(int(each))
        elif each is not None:
            raise CheckpointError(
                f"eos_token_id {str(stated)[:80]} of {directory} is not a token id"
            )
    return token_ids
