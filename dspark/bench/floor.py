"""The floor of a pass: the time in which this machine's memory yields the target's weights."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from dspark.checkpoints.model_folder import ModelFolder, coded_sizes, read_shapes
from dspark.hub.footprint import is_dense

MOST_BYTES = 2**28  # of the measurement; more do not fit into a cache either
TRIES = 5


@dataclass(frozen=True, slots=True)
class Floor:
    """A pass of few rows reads every weight once: `weight_bytes` at `bytes_per_second`."""

    weight_bytes: int
    bytes_per_second: float

    @property
    def seconds(self) -> float:
        return self.weight_bytes / self.bytes_per_second


def measure_floor(target: Path, dtype: str, device: str) -> Floor | None:
    """None for targets that do not read all their weights in every pass, such as experts."""
    num_bytes = step_bytes(target, dtype)
    return None if num_bytes is None else Floor(num_bytes, bandwidth(num_bytes, device))


def step_bytes(target: Path, dtype: str) -> int | None:
    """Bytes of the weights that a pass of one row reads: all but an embedding of its own. `dtype`
    is torch's name of a number format, or that of the codes in which weights are stored."""
    import torch

    folder = ModelFolder(target)
    if not is_dense(folder.config):
        return None
    shapes = read_shapes(folder)
    values = sum(prod(shape) for shape in shapes.values())
    is_coded = not hasattr(torch, dtype)
    size = torch.float32.itemsize if is_coded else getattr(torch, dtype).itemsize
    looked_up = "model.embed_tokens.weight" if "lm_head.weight" in shapes else None
    unread = prod(shapes.get(looked_up, (0,))) if looked_up else 0
    coded_values, coded_bytes = coded_sizes(folder) if is_coded else (0, 0)
    if coded_values:  # the embedding is in codes, too
        share = 1 - unread / values
        return int((coded_bytes + (values - coded_values) * size) * share)
    return int((values - unread) * size)


def bandwidth(num_bytes: int, device: str) -> float:
    """Bytes per second of the fastest way to read as many bytes again and again, as a decoder does
    with its weights: a sum, a dot product, or a copy, which reads and writes."""
    import torch

    source = torch.zeros(min(num_bytes, MOST_BYTES) // 4, device=device)
    target = torch.empty_like(source)
    ways = (
        (1, lambda: source.sum()),
        (1, lambda: torch.dot(source, source)),
        (2, lambda: target.copy_(source)),
    )
    return max(passes * source.nbytes / _fastest(work, device) for passes, work in ways)


def _fastest(work: Callable[[], object], device: str) -> float:
    import torch

    seconds = []
    for _ in range(TRIES):
        started = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
