"""The floor of a pass: the time in which this machine's memory yields the target's weights."""

import time
from dataclasses import dataclass
from math import prod
from pathlib import Path

from dspark.checkpoints.model_folder import ModelFolder, coded_sizes, read_shapes
from dspark.hub.memory_needed import is_dense

COPIED_BYTES = 2**27  # beyond any cache of a CPU, and of a GPU's L2
COPIES = 5


@dataclass(frozen=True, slots=True)
class Floor:
    """A pass of few rows reads every weight once: `weight_bytes` at `bytes_per_second`, which was
    measured by copying."""

    weight_bytes: int
    bytes_per_second: float

    @property
    def seconds(self) -> float:
        return self.weight_bytes / self.bytes_per_second


def measure_floor(target: Path, dtype: str, device: str) -> Floor | None:
    """None for targets that do not read all their weights in every pass, such as experts."""
    num_bytes = step_bytes(target, dtype)
    return None if num_bytes is None else Floor(num_bytes, copy_bandwidth(device))


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


def copy_bandwidth(device: str) -> float:
    """Bytes per second that are read and written by the fastest of a few copies."""
    import torch

    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(COPIES):
        started = time.perf_counter()
        target.copy_(source)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * COPIED_BYTES / min(seconds)
