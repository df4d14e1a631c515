"""The trained part of a DSpark pair (DeepSeek 2026): backbone, sequential and confidence head.

One module serves training and decoding; parameter names are those of DeepSpec's layout.
A context feature is RMSNorm(W_c · taps); each layer projects it with its own k and v weights.
"""

from typing import Any

import torch
from torch import nn

from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.models.draft_layer import DraftLayer, Norm, draft_layer
from dspark.models.head_module import HeadModule
from dspark.models.sequential_heads import ConfidenceHead, build_markov_head


class DSparkHead(HeadModule):
    """Layers that see the context features and the block, then the sequential heads."""

    config: DSparkConfig
    fc: nn.Linear
    layers: nn.ModuleList
    norm: Norm

    def __init__(self, config: DSparkConfig) -> None:
        super().__init__(config)
        self.fc = nn.Linear(config.tap_width, config.hidden_size, bias=False)
        self.hidden_norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.layers = nn.ModuleList(self._layer(config) for _ in range(config.num_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.markov_head = build_markov_head(config)
        self.confidence_head = ConfidenceHead(config) if config.has_confidence else None

    @staticmethod
    def _layer(config: Any) -> DraftLayer:
        return draft_layer(config)

    def context_features(self, taps: torch.Tensor) -> torch.Tensor:
        """taps [..., N, T * H] -> [..., N, H]."""
        out: torch.Tensor = self.hidden_norm(self.fc(taps))
        return out

    @property
    def feature_norm(self) -> Norm:
        return self.hidden_norm
