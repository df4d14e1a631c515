"""Taps of a transformers model: outputs of its layers, by hooks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dspark.errors import CheckpointError


class HookedTaps:
    """Outputs of the layers in the last forward; if rows run one by one (`is_stepwise`), in all of
    them. Layer -1 is the embeddings."""

    def __init__(self, model: Any, layers: Sequence[int], *, is_stepwise: bool = False) -> None:
        """Raises CheckpointError if the model's layers cannot be found."""
        self._layers, self._is_stepwise = tuple(layers), is_stepwise
        self._seen: dict[int, torch.Tensor] = {}
        for index in layers:
            module = decoder_layers(model)[index] if index >= 0 else model.get_input_embeddings()
            module.register_forward_hook(self._record(index))

    def _record(self, index: int) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            rows = output[0] if isinstance(output, tuple) else output
            before = self._seen.get(index) if self._is_stepwise else None
            self._seen[index] = rows if before is None else torch.cat([before, rows], dim=1)

        return hook

    def rows(self, sequence: int = 0) -> torch.Tensor:
        """[N, T * H] of one sequence."""
        taps = [self._seen[index][sequence] for index in self._layers]
        if taps[0].dim() == 3:  # DeepSeek-V4's streams: heads use their mean
            taps = [tap.mean(dim=1) for tap in taps]
        return torch.cat(taps, dim=-1)

    def keep(self, num_rows: int) -> None:
        """The last rows of each layer."""
        self._seen = {index: seen[:, -num_rows:] for index, seen in self._seen.items()}

    def clear(self) -> None:
        self._seen.clear()


def decoder_layers(model: Any) -> Any:
    """The list of decoder layers, found by the architecture's name for it."""
    for path in ("model.layers", "model.language_model.layers", "transformer.h", "gpt_neox.layers"):
        module = model
        for name in path.split("."):
            module = getattr(module, name, None)
        if module is not None:
            return module
    raise CheckpointError(
        f"the layers of {type(model).__name__} cannot be tapped, so no head can draft for it",
        "Use --draft lookup or --draft none.",
    )
