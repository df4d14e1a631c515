"""Chooses the implementation of a target: `dense` where it is exact, otherwise transformers."""

from pathlib import Path

import torch

from dspark.targets.base import Target
from dspark.targets.dense_files import load_dense, read_config, supports
from dspark.targets.stop_tokens import stop_tokens


def load_target(
    directory: Path,
    *,
    tap_layers: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    pack: bool = True,
) -> Target:
    """Read the model in `directory`, tapping the given layers."""
    config = read_config(directory)
    if supports(config):
        return load_dense(
            directory, config, tap_layers=tap_layers, device=device, dtype=dtype, pack=pack
        )
    from dspark.targets.hf import load_hf

    return load_hf(
        directory,
        tap_layers=tap_layers,
        stop_token_ids=stop_tokens(directory, config),
        device=device,
        dtype=dtype,
    )
