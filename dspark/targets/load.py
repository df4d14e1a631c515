"""Chooses the implementation of a target: `stored` for the codes of a GGUF on a CPU, `dense` where
it is exact, otherwise transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dspark.targets.base import Target
from dspark.targets.dense_config import DenseConfig, read_dense_config
from dspark.targets.dense_files import load_dense, read_config, supports
from dspark.targets.stop_tokens import stop_tokens


def load_target(
    directory: Path,
    *,
    tap_layers: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    prepack: bool = True,
    as_stored: bool = False,
    raw: Mapping[str, Any] | None = None,
) -> Target:
    """Read the model in `directory`, tapping the given layers. `as_stored`: on a CPU, weights in
    the codes of a GGUF are multiplied with as they are, and `dtype` is that of rows. `raw` is its
    config.json, if that was read already."""
    config = read_dense_config(directory, raw) or read_config(directory, raw)
    if as_stored and device.type == "cpu":
        from dspark.targets.stored import load_stored, stored_runtime

        if (runtime := stored_runtime(directory, config)) is not None:
            return load_stored(directory, config, runtime, tap_layers=tap_layers)
    if isinstance(config, DenseConfig) or supports(config):
        return load_dense(
            directory, config, tap_layers=tap_layers, device=device, dtype=dtype, prepack=prepack
        )
    from dspark.targets.hf import load_hf
    from dspark.targets.hf_model import check_text_model

    check_text_model(directory, config)
    return load_hf(
        directory,
        tap_layers=tap_layers,
        stop_token_ids=stop_tokens(directory, config),
        device=device,
        dtype=dtype,
    )
