"""The trained part of an EAGLE-3 pair (Li et al. 2025)."""

import torch
from torch import nn

from dspark.checkpoints.eagle3_config import Eagle3Config
from dspark.models.draft_layer import DraftLayer, Norm, draft_layer
from dspark.models.head_module import HeadModule


class Eagle3Head(HeadModule):
    """One layer over embeddings and hidden states side by side.

    Logits come from norm(hidden state); the next step takes the hidden state before that norm.
    """

    config: Eagle3Config
    fc: nn.Linear
    layers: nn.ModuleList
    norm: Norm

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__(config)
        self.fc = nn.Linear(config.tap_width, config.hidden_size, bias=False)
        layer = draft_layer(config, config.attention_width)
        layer.hidden_norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.layers = nn.ModuleList([layer])
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)

    @property
    def layer(self) -> DraftLayer:
        return self.layers[0]  # type: ignore[return-value]

    def inputs(self, embedded: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Embeddings of the next tokens, hidden states, each [..., H] -> [..., 2 H]."""
        layer = self.layer
        return torch.cat([layer.input_layernorm(embedded), layer.hidden_norm(hidden)], dim=-1)

    @property
    def feature_norm(self) -> Norm:
        return self.layer.hidden_norm
