"""Read and write heads in DeepSpec's standalone layout: config.json + model.safetensors."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from dspark.checkpoints.eagle3_config import (
    EAGLE3_ARCHITECTURE,
    DraftConfig,
    Eagle3Config,
    expected_eagle3_tensors,
)
from dspark.checkpoints.head_config import HeadConfig, expected_tensors
from dspark.errors import CheckpointError, StorageError

SHARED_WITH_TARGET = ("embed_tokens.weight", "lm_head.weight")
DRAFT_VOCABULARY = "draft_vocabulary.safetensors"  # ours, beside the layout: others pass it over


def read_head_config(directory: Path) -> HeadConfig:
    """Raises CheckpointError where config.json is missing, not JSON, or not a DSpark head's."""
    return HeadConfig.from_json(_read_json(directory / "config.json"))


def read_draft_config(directory: Path) -> DraftConfig:
    """As read_head_config, of a head of any architecture."""
    raw = _read_json(directory / "config.json")
    is_eagle3 = (raw.get("architectures") or ["?"])[0] == EAGLE3_ARCHITECTURE
    return Eagle3Config.from_json(raw) if is_eagle3 else HeadConfig.from_json(raw)


def read_head(directory: Path) -> tuple[HeadConfig, dict[str, torch.Tensor]]:
    """Config and tensors, every name and shape checked.

    The embedding and the output head may be missing: the target's own are used then.
    """
    config = read_head_config(directory)
    return config, _read_tensors(directory / "model.safetensors", config)


def read_draft(directory: Path) -> tuple[DraftConfig, dict[str, torch.Tensor]]:
    """As read_head, of a head of any architecture."""
    config = read_draft_config(directory)
    return config, _read_tensors(directory / "model.safetensors", config)


def _read_tensors(path: Path, config: DraftConfig) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _check_tensors(found, _expected(config), path)
            return {name: file.get_tensor(name) for name in found}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", "Fetch the head again.") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error})", "Fetch the head again."
        ) from error


def read_draft_vocabulary(directory: Path, vocab_size: int) -> torch.Tensor | None:
    """Rising ids [N] of the tokens that the head proposes; None where it proposes any."""
    path = directory / DRAFT_VOCABULARY
    if not path.exists():
        return None
    try:
        ids = load_file(path)["token_ids"].long()
    except (SafetensorError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a draft vocabulary ({error})", "Delete it to draft from all tokens."
        ) from error
    is_rising = ids.dim() == 1 and len(ids) > 0 and bool((ids.diff() > 0).all())
    if not is_rising or int(ids[0]) < 0 or int(ids[-1]) >= vocab_size:
        raise CheckpointError(
            f"{path} does not fit a vocabulary of {vocab_size} tokens",
            "Delete it to draft from all tokens.",
        )
    return ids


def write_draft_vocabulary(directory: Path, token_ids: torch.Tensor | None) -> None:
    """token_ids [N], rising; None takes away what an earlier head left there."""
    if token_ids is None:
        (directory / DRAFT_VOCABULARY).unlink(missing_ok=True)
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _replacing(directory / DRAFT_VOCABULARY) as path:
            save_file({"token_ids": token_ids.int().contiguous()}, path)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"could not write to {directory} ({error})", "Free some space and try again."
        ) from error


def write_head(
    directory: Path, config: DraftConfig, tensors: dict[str, torch.Tensor], extra: dict[str, Any]
) -> None:
    """Write config and tensors so that a reader sees the old files or the new ones, never a half.

    `extra` goes into config.json beside DeepSpec's keys (calibration, provenance).
    """
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _check_tensors(found, _expected(config), directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        with _replacing(directory / "model.safetensors") as weights:
            save_file(contiguous, weights, metadata={"format": "pt"})
        with _replacing(directory / "config.json") as settings:
            settings.write_text(json.dumps(config.to_json() | extra, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"could not write the head to {directory} ({error})", "Free some space and try again."
        ) from error


def update_head_config(directory: Path, changes: dict[str, Any]) -> None:
    """Set keys of a head's config.json and leave the others; what is below "graft" is merged."""
    raw = _read_json(directory / "config.json")
    figures = raw.get("graft", {}) | changes.get("graft", {})
    raw |= changes | ({"graft": figures} if figures else {})
    HeadConfig.from_json(raw)
    try:
        with _replacing(directory / "config.json") as settings:
            settings.write_text(json.dumps(raw, indent=2) + "\n")
    except OSError as error:
        raise StorageError(
            f"could not write to {directory} ({error})", "Free some space and try again."
        ) from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` once it is complete."""
    partial = path.with_name(f".{path.name}.tmp")  # one name: a killed writer's is written over
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", "Is this the folder of a head?") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return raw


def _expected(config: DraftConfig) -> dict[str, tuple[int, ...]]:
    if isinstance(config, Eagle3Config):
        return expected_eagle3_tensors(config)
    return expected_tensors(config)


def _check_tensors(
    found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], where: Path
) -> None:
    missing = [name for name in expected if name not in found and name not in SHARED_WITH_TARGET]
    surplus = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {list(shape)} instead of {list(expected[name])}"
        for name, shape in found.items()
        if name in expected and shape != expected[name]
    ]
    for kind, names in (("lacks", missing), ("has the surplus", surplus), ("is wrong:", misshapen)):
        if names:
            raise CheckpointError(
                f"{where} {kind} {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}",
                "config.json and model.safetensors do not belong together.",
            )
