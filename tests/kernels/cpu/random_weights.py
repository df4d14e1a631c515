"""Blocks of a GGUF with random codes and moderate scales."""

import torch

from dspark_kernels.cpu.formats import FORMATS
from dspark_kernels.cpu.stored_weight import StoredWeight, stored_weight


def random_blocks(kind: str, num_outputs: int, width: int, generator: torch.Generator):
    """uint8 [N, bytes of a row]."""
    form = FORMATS[kind]
    shape = (num_outputs, width // form.block)
    blocks = torch.randint(256, (*shape, form.block_bytes), dtype=torch.uint8, generator=generator)
    scales = (torch.randn(*shape, 2, generator=generator) * 0.01).half().view(torch.uint8)
    if kind == "q6_k":
        blocks[..., 208:] = scales[..., :2]
    else:
        blocks[..., : 4 if form.has_least else 2] = scales[..., : 4 if form.has_least else 2]
    return blocks.flatten(1)


def random_weight(
    kind: str, num_outputs: int, width: int, generator: torch.Generator
) -> StoredWeight:
    return stored_weight(kind, random_blocks(kind, num_outputs, width, generator))
