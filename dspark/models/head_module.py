"""What every trained head has, whatever its kind."""

from torch import nn

from dspark.checkpoints.head_config import HeadConfig
from dspark.models.draft_layer import Norm, full_rotary
from dspark.models.sequential_heads import ConfidenceHead, MarkovHead
from dspark_kernels import RotaryTable


class HeadModule(nn.Module):
    """Everything of a head but the embedding and the output head, which are the target's, frozen.

    `fc` makes a context feature of the taps, `feature_norm` normalises it.
    """

    config: HeadConfig
    fc: nn.Linear
    layers: nn.ModuleList
    norm: Norm
    markov_head: MarkovHead | None
    confidence_head: ConfidenceHead | None

    @property
    def feature_norm(self) -> Norm:
        raise NotImplementedError

    def rotary_table(self) -> RotaryTable:
        """Full rotary over head_dim at the head's own base frequency."""
        return full_rotary(self.config, self.norm.weight)
