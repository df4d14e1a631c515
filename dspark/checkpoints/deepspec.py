"""Read and write heads in DeepSpec's standalone layout: config.json + model.safetensors
(https://github.com/deepseek-ai/DeepSpec)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dspark.atomic import replacing
from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.checkpoints.files import read_json
from dspark.checkpoints.head_config import HeadConfig
from dspark.checkpoints.heads import check_head, open_draft, read_draft, read_draft_config
from dspark.checkpoints.model_folder import DRAFT_VOCABULARY, Folder, ModelFolder
from dspark.checkpoints.safetensors_dir import infos_of, read_file
from dspark.errors import CheckpointError, StorageError

__all__ = [
    "open_draft",
    "read_draft",
    "read_draft_config",
    "read_draft_vocabulary",
    "read_head",
    "read_head_config",
    "update_head_config",
    "write_draft_vocabulary",
    "write_head",
]


def read_head_config(directory: Path) -> DSparkConfig:
    """Raises CheckpointError if config.json is missing, not JSON, or not a DSpark head's."""
    return DSparkConfig.from_json(read_json(directory / "config.json"))


def read_head(directory: Path) -> tuple[DSparkConfig, dict[str, torch.Tensor]]:
    """Config and tensors of a DSpark head in DeepSpec's layout, every name and shape checked.

    The embedding and the output head may be missing: then the target's are used.
    """
    config = read_head_config(directory)
    return config, read_draft(directory)[1]


def read_draft_vocabulary(folder: Folder, vocab_size: int) -> torch.Tensor | None:
    """Ascending ids [N] of the tokens that the head may propose; None if it may propose any."""
    folder = ModelFolder.of(folder)
    path = folder.path / DRAFT_VOCABULARY
    if not path.exists():
        return None
    try:
        ids = read_file(folder, DRAFT_VOCABULARY)["token_ids"].long()
    except KeyError as error:
        raise CheckpointError(
            f"{path} is not a draft vocabulary", "Delete it to draft from all tokens."
        ) from error
    is_rising = ids.dim() == 1 and len(ids) > 0 and bool((ids.diff() > 0).all())
    if not is_rising or int(ids[0]) < 0 or int(ids[-1]) >= vocab_size:
        raise CheckpointError(
            f"{path} does not fit a vocabulary of {vocab_size} tokens",
            "Delete it to draft from all tokens.",
        )
    return ids


def write_draft_vocabulary(directory: Path, token_ids: torch.Tensor | None) -> None:
    """token_ids [N], ascending; None removes the file of an earlier head."""
    if token_ids is None:
        (directory / DRAFT_VOCABULARY).unlink(missing_ok=True)
        return
    with _writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with replacing(directory / DRAFT_VOCABULARY) as path:
            save_file({"token_ids": token_ids.int().contiguous()}, path)


def write_head(
    directory: Path, config: HeadConfig, tensors: dict[str, torch.Tensor], extra: dict[str, Any]
) -> None:
    """Write config and tensors, each file replaced atomically; the weights are written first.

    `extra` is added to DeepSpec's keys in config.json (calibration, provenance).
    """
    check_head(infos_of(tensors), config, str(directory))
    with _writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        with replacing(directory / "model.safetensors") as weights:
            save_file(contiguous, weights, metadata={"format": "pt"})
        with replacing(directory / "config.json") as settings:
            settings.write_text(json.dumps(config.to_json() | extra, indent=2) + "\n")


def update_head_config(directory: Path, changes: dict[str, Any]) -> None:
    """Set keys of a head's config.json and leave the others; the object "graft" is merged."""
    raw = read_json(directory / "config.json")
    figures = raw.get("graft", {}) | changes.get("graft", {})
    raw |= changes | ({"graft": figures} if figures else {})
    if changes.keys() - {"graft"}:
        DSparkConfig.from_json(raw)
    with _writing(directory), replacing(directory / "config.json") as settings:
        settings.write_text(json.dumps(raw, indent=2) + "\n")


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Raises StorageError if the disk is full, for which safetensors has its own error."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"could not write the head to {directory} ({error})", "Free some space and try again."
        ) from error
