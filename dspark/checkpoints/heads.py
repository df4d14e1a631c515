"""Heads in every established packaging, as config and tensors under DeepSpec's names."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dspark.checkpoints.deepseek_v4 import read_own_config
from dspark.checkpoints.deepseek_v4_config import count_own_parameters, holds_own_head
from dspark.checkpoints.detect import Packaging, detect, head_folder, is_deepspec, refuse_gguf
from dspark.checkpoints.files import one_line
from dspark.checkpoints.head_config import AnyHeadConfig, HeadConfig
from dspark.checkpoints.head_configs import parse_config
from dspark.checkpoints.model_folder import Folder, ModelFolder, count_parameters
from dspark.checkpoints.other_layouts import (
    canonical_name,
    ours,
    read_family_config,
    refuse_unbuilt,
)
from dspark.checkpoints.safetensors_dir import (
    StoredTensors,
    TensorInfo,
    check_tensors,
    tensor_infos,
)
from dspark.errors import CheckpointError

SHARED_WITH_TARGET = ("embed_tokens.weight", "lm_head.weight")
INTEGERS = ("I64", "I32")


@dataclass(frozen=True, slots=True)
class FoundHead:
    """The content of a folder, from config.json and the headers alone."""

    folder: ModelFolder
    packaging: Packaging
    raw: Mapping[str, Any]
    config: HeadConfig
    names: Mapping[str, str]  # name in the files -> DeepSpec's


def open_head(directory: Folder) -> ModelFolder:
    """The folder that holds a head, without judging it: the one given, which may be a target with
    a head of its own, or its subfolder. Raises CheckpointError if neither has a config.json."""
    if isinstance(directory, ModelFolder):
        return directory
    refuse_gguf(directory)
    folder = head_folder(directory)
    if folder.path != directory and is_own_head(target := ModelFolder(directory)):
        folder = target
    _ = folder.config
    return folder


def read_any_config(folder: Folder) -> AnyHeadConfig:
    """As read_draft_config, and of a DeepSeek-V4 target's own head too."""
    folder = open_head(folder)
    if is_own_head(folder):
        return read_own_config(folder)
    return find_head(folder, check=False).config


def is_own_head(folder: Folder) -> bool:
    """Whether the head is in a DeepSeek-V4 target's own files; then read_own_head reads it."""
    folder = ModelFolder.of(folder)
    return folder.has("config.json") and holds_own_head(folder.config)


def count_head_parameters(directory: Path) -> int:
    """Of a head in files of its own, or of the head inside a DeepSeek-V4 target."""
    folder = ModelFolder(directory)
    if is_own_head(folder):
        return count_own_parameters(read_own_config(folder))
    return count_parameters(folder)


def read_draft_config(folder: Folder) -> HeadConfig:
    """Raises CheckpointError with the reason if the folder has no readable head."""
    return find_head(folder, check=False).config


def read_draft(folder: Folder) -> tuple[HeadConfig, dict[str, torch.Tensor]]:
    """Config and tensors, every name, type and shape checked before one is read.

    The embedding and the output head may be missing: then the target's are used.
    """
    config, stored = open_draft(folder)
    return config, dict(stored)


def open_draft(folder: Folder) -> tuple[HeadConfig, MutableMapping[str, torch.Tensor]]:
    """As read_draft, each tensor read when it is asked for."""
    head = find_head(folder)
    stored: MutableMapping[str, torch.Tensor] = StoredTensors(
        head.folder, names=head.names, renamed=head.names
    )
    interleaved = head.raw.get("rope_is_neox_style") is False
    if interleaved:  # some are read in another form than stored
        stored = dict(stored)
    return head.config, ours(stored, head.config, interleaved=interleaved)


def find_head(folder: Folder, *, check: bool = True) -> FoundHead:
    """Packaging and sizes; `check` compares every tensor with them."""
    if isinstance(folder, Path):
        refuse_gguf(folder)
        folder = head_folder(folder)
    raw, path = folder.config, folder.path
    if holds_own_head(raw):  # before the headers of a target's many shards are read
        raise _inside_target(path)
    is_ours = is_deepspec(raw)
    infos = tensor_infos(folder) if check or not is_ours else {}
    packaging = detect(path, raw, infos)
    if packaging is Packaging.IN_TARGET:
        raise _inside_target(path)
    names = _canonical(infos, path) if not is_ours else {name: name for name in infos}
    named = {names[name]: info for name, info in infos.items() if name in names}
    config = _config(raw, packaging, named)
    if check:
        check_head(named, config, str(path))
    return FoundHead(folder, packaging, raw, config, names)


def check_published(raw: Mapping[str, Any], what: str) -> Packaging:
    """The packaging of a head before its download, from its config.json alone.

    Raises CheckpointError if it could not be run.
    """
    try:
        packaging = detect(Path(what), raw, ())
        if packaging is Packaging.DEEPSPEC:
            _config(raw, packaging, {})
        else:
            refuse_unbuilt(raw, packaging)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"config.json of {what} is malformed: {one_line(error)}") from error
    return packaging


def _inside_target(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder} holds DeepSeek-V4's DSpark head, which runs only with its own target",
        "Give the folder as both target and head, to chat, generate or bench.",
    )


def check_head(infos: Mapping[str, TensorInfo], config: HeadConfig, what: str) -> None:
    """Raises CheckpointError naming tensors that do not belong to a head of these sizes."""
    weights = dict(infos)
    d2t = weights.pop("d2t", None)
    wanted = {name: shape for name, shape in config.expected_tensors().items() if name != "d2t"}
    check_tensors(weights, wanted, SHARED_WITH_TARGET, what)
    columns = config.draft_vocab_size
    if columns and (d2t is None or d2t.dtype not in INTEGERS or d2t.shape != (columns,)):
        raise CheckpointError(
            f"{what} has {columns} tokens and no d2t that maps them to the target's"
        )


def _config(
    raw: Mapping[str, Any], packaging: Packaging, infos: Mapping[str, TensorInfo]
) -> HeadConfig:
    if packaging is not Packaging.DEEPSPEC:
        return read_family_config(raw, packaging, infos)
    return parse_config(raw)


def _canonical(infos: Mapping[str, TensorInfo], folder: Path) -> dict[str, str]:
    names = {name: short for name in infos if (short := canonical_name(name))}
    if len(set(names.values())) < len(names):
        raise CheckpointError(f"{folder} holds a tensor under two names")
    return names
