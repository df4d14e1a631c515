"""Heads in every established packaging, as config and tensors under DeepSpec's names."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dspark.checkpoints.deepseek_v4 import read_own_config
from dspark.checkpoints.deepseek_v4_config import count_own_parameters, holds_own_head
from dspark.checkpoints.detect import Packaging, detect, head_folder, is_deepspec, refuse_gguf
from dspark.checkpoints.files import one_line, read_json
from dspark.checkpoints.head_config import AnyHeadConfig, HeadConfig
from dspark.checkpoints.head_configs import parse_config
from dspark.checkpoints.model_folder import count_parameters
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

    folder: Path
    packaging: Packaging
    raw: Mapping[str, Any]
    config: HeadConfig
    names: Mapping[str, str]  # name in the files -> DeepSpec's


def read_any_config(directory: Path, raw: Mapping[str, Any] | None = None) -> AnyHeadConfig:
    """As read_draft_config, and of a DeepSeek-V4 target's own head too; `raw` is its config.json,
    if that was read already."""
    if is_own_head(directory) if raw is None else holds_own_head(raw):
        return read_own_config(directory)
    return find_head(directory, check=False, raw=raw).config


def is_own_head(directory: Path) -> bool:
    """Whether the head is in a DeepSeek-V4 target's own files; then read_own_head reads it."""
    path = directory / "config.json"
    return path.is_file() and holds_own_head(read_json(path))


def read_head_json(directory: Path) -> dict[str, Any]:
    """The config.json of a head, wherever in the folder it is, without judging it."""
    refuse_gguf(directory)
    folder = head_folder(directory)
    if folder != directory and is_own_head(directory):
        folder = directory
    return read_json(folder / "config.json")


def count_head_parameters(directory: Path) -> int:
    """Of a head in files of its own, or of the head inside a DeepSeek-V4 target."""
    if is_own_head(directory):
        return count_own_parameters(read_own_config(directory))
    return count_parameters(directory)


def read_draft_config(directory: Path) -> HeadConfig:
    """Raises CheckpointError with the reason if the folder has no readable head."""
    return find_head(directory, check=False).config


def read_draft(directory: Path) -> tuple[HeadConfig, dict[str, torch.Tensor]]:
    """Config and tensors, every name, type and shape checked before one is read.

    The embedding and the output head may be missing: then the target's are used.
    """
    config, stored = open_draft(directory)
    return config, dict(stored)


def open_draft(directory: Path) -> tuple[HeadConfig, MutableMapping[str, torch.Tensor]]:
    """As read_draft, each tensor read when it is asked for."""
    head = find_head(directory)
    stored: MutableMapping[str, torch.Tensor] = StoredTensors(
        head.folder, names=head.names, renamed=head.names
    )
    interleaved = head.raw.get("rope_is_neox_style") is False
    if interleaved:  # some are read in another form than stored
        stored = dict(stored)
    return head.config, ours(stored, head.config, interleaved=interleaved)


def find_head(
    directory: Path, *, check: bool = True, raw: Mapping[str, Any] | None = None
) -> FoundHead:
    """Packaging and sizes; `check` compares every tensor with them. `raw` is the head's
    config.json, if that was read already."""
    refuse_gguf(directory)
    folder = head_folder(directory)
    raw = read_json(folder / "config.json") if raw is None else raw
    if holds_own_head(raw):  # before the headers of a target's many shards are read
        raise _inside_target(folder)
    is_ours = is_deepspec(raw)
    infos = tensor_infos(folder) if check or not is_ours else {}
    packaging = detect(folder, raw, infos)
    if packaging is Packaging.IN_TARGET:
        raise _inside_target(folder)
    names = _canonical(infos, folder) if not is_ours else {name: name for name in infos}
    named = {names[name]: info for name, info in infos.items() if name in names}
    config = _config(raw, packaging, named)
    if check:
        check_head(named, config, str(folder))
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
