"""What every trained head has, whatever its kind."""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn

from dspark.checkpoints.head_config import HeadConfig
from dspark.models.candidate_selector import CandidateSelector
from dspark.models.draft_layer import Norm, full_rotary
from dspark.models.sequential_heads import ConfidenceHead, MarkovHead
from dspark_kernels import RotaryTable


class OutputMap(Protocol):
    """Holds the map from a sequential head's features [..., r] to the bias of logits [..., V]."""

    @property
    def markov_w2(self) -> Any: ...


class HeadModule(nn.Module):
    """Everything of a head but the embedding and the output head, which are the target's, frozen.

    `fc` makes a context feature of the taps, `feature_norm` normalises it; `norm` is the last one.
    A kind of head sets the parts that it has: from these a training starts as the target, and
    whatever else a kind has starts at random.
    """

    config: HeadConfig
    fc: nn.Linear | None
    layers: Iterable[nn.Module]
    norm: Norm | None
    markov_head: MarkovHead | None
    confidence_head: ConfidenceHead | None
    candidate_selector: CandidateSelector | None

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config, self.layers = config, ()
        self.fc = self.norm = self.markov_head = self.confidence_head = None
        self.candidate_selector = None

    def begin(self, generator: torch.Generator) -> None:
        """First values of the parts that only this kind has, after all linear maps have theirs."""

    @property
    def output_map(self) -> OutputMap | None:
        """None without a sequential head that changes all logits."""
        return self.markov_head

    @property
    def tables(self) -> list[torch.Tensor]:
        """Trained parameters with a row per token, which have a learning rate of their own."""
        markov = self.markov_head
        return [] if markov is None else [markov.markov_w1.weight, markov.markov_w2.weight]

    @property
    def feature_norm(self) -> Norm | None:
        return None

    def rotary_table(self) -> RotaryTable:
        """Full rotary over head_dim at the head's own base frequency."""
        return full_rotary(self.config, next(self.parameters()))
