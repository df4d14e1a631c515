"""Random numbers that depend on seed and step alone, so that no state needs saving."""

import torch

PURPOSES = ("order", "anchors", "validation", "vocabulary")


def generator_of(seed: int, purpose: str, index: int) -> torch.Generator:
    number = (seed * len(PURPOSES) + PURPOSES.index(purpose)) * 2**32 + index
    return torch.Generator().manual_seed(number)
