"""Random numbers that follow from the seed and the step alone, so that no state is to be saved."""

import torch

PURPOSES = ("order", "anchors", "validation", "vocabulary")


def generator_of(seed: int, purpose: str, index: int) -> torch.Generator:
    number = (seed * len(PURPOSES) + PURPOSES.index(purpose)) * 2**32 + index
    return torch.Generator().manual_seed(number)
