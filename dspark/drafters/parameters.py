"""How large a head is, without loading it."""

import torch

from dspark.checkpoints.eagle3_config import DraftConfig, Eagle3Config
from dspark.drafters.eagle3 import Eagle3Head
from dspark.models.dspark_head import DSparkHead


def trained_parameters(shape: DraftConfig) -> int:
    """Those of the head's own; the embedding and the output head are the target's, frozen."""
    with torch.device("meta"):
        head = Eagle3Head(shape) if isinstance(shape, Eagle3Config) else DSparkHead(shape)
    return sum(parameter.numel() for parameter in head.parameters())
