"""Continuing from a head: its shape for the training, and its weights."""

from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dspark.checkpoints.head_config import HeadConfig
from dspark.checkpoints.heads import read_draft
from dspark.config import GraftConfig
from dspark.drafters.kinds import build_head
from dspark.errors import InputError, PairMismatchError
from dspark.graft.head.init_from_target import start_random
from dspark.models.head_module import HeadModule

# parts that a head may lack and training adds: a DFlash head has neither
ADDED = {"markov_head": "the sequential head", "confidence_head": "the confidence head"}


def with_shape_of(config: GraftConfig, head: HeadConfig, given: Container[str]) -> GraftConfig:
    """`config` with the shape of `head`, but for its fields that were `given`.

    Raises InputError for a head that the algorithm cannot continue from.
    """
    if config.algorithm not in head.algorithms:
        raise InputError(
            f"{config.algorithm} cannot continue from the head given to --init-from",
            f"Choose --algo {' or '.join(head.algorithms)} for it.",
        )
    if head.untrained is not None:
        raise InputError(
            f"the head given to --init-from has {head.untrained}, which no training keeps",
            "Give another head, or train one from the target.",
        )
    head_fields: dict[str, Any] = {
        "block_size": head.block_size,
        "num_layers": head.num_layers,
        "intermediate_size": head.intermediate_size,
        "num_kv_heads": head.num_kv_heads,
        "taps": head.target_layer_ids,
    }
    if head.has_mask:
        head_fields["mask_token_id"] = head.mask_token_id
    if "none" not in (head.markov_type, config.markov_type):
        head_fields["markov_type"] = head.markov_type
    if head.table_rank and (config.markov_type != "none" or head.markov_type == "none"):
        head_fields["markov_rank"] = head.table_rank
    return replace(config, **{name: head_fields[name] for name in head_fields if name not in given})


def check_start(shape: HeadConfig, folder: Path) -> None:
    """Raises PairMismatchError if training cannot continue from the head in `folder`."""
    with torch.device("meta"):
        head = build_head(shape)
    _shared(head, read_draft(folder)[1])


@torch.no_grad()
def start_from_head(head: HeadModule, folder: Path, generator: torch.Generator) -> tuple[str, ...]:
    """Load the weights of the head in `folder`; returns notes on the parts it lacks."""
    shared, missing = _shared(head, read_draft(folder)[1])
    start_random(head, generator)
    head.load_state_dict(shared, strict=False)
    return tuple(f"{ADDED[part]} starts from scratch: {folder} has none" for part in missing)


def _shared(
    head: HeadModule, tensors: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors that `head` loads, and the parts missing from `tensors`."""
    head_state = head.state_dict()
    shared = {name: t.float() for name, t in tensors.items() if name in head_state}
    there = {name.split(".")[0] for name in shared}
    missing = [part for part in ADDED if part not in there and _holds(head_state, part)]
    shapes = {name: t.shape for name, t in head_state.items() if name.split(".")[0] not in missing}
    for name, shape in shapes.items():
        if name not in shared or shared[name].shape != shape:
            actual = list(shared[name].shape) if name in shared else "missing"
            raise PairMismatchError(
                f"the head given to --init-from has another shape: {name} is {actual}, "
                f"the training needs {list(shape)}",
                "Leave out the options of the head's shape, and use the base it was trained for.",
            )
    return shared, missing


def _holds(own: dict[str, torch.Tensor], part: str) -> bool:
    return any(name.startswith(f"{part}.") for name in own)
