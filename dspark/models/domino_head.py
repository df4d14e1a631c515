"""Domino (Huang et al. 2026, arXiv 2605.29707): a DFlash head, its logits corrected by a GRU over
the tokens that were chosen before. Names of parameters are those of torch.nn.GRU and SpecForge."""

import torch
import torch.nn.functional as F
from torch import nn

from dspark.checkpoints.domino_config import DominoConfig
from dspark.models.dspark_head import DSparkHead
from dspark.models.head_module import OutputMap

NOISE = 0.02


class PrefixGRU(nn.Module):
    """One layer without biases; gates in the order reset, update, new."""

    def __init__(self, config: DominoConfig) -> None:
        super().__init__()
        self.width = config.gru_width
        self.weight_ih_l0 = nn.Parameter(torch.zeros(3 * self.width, config.hidden_size))
        self.weight_hh_l0 = nn.Parameter(torch.zeros(3 * self.width, self.width))

    def forward(self, embedding: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """embedding [..., H] of the next token, state [..., G] before it -> the state after."""
        of_token = F.linear(embedding, self.weight_ih_l0)
        return gru_state(of_token, F.linear(state, self.weight_hh_l0), state)


def gru_state(of_token: torch.Tensor, of_state: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """Both products [..., 3 G] of the gates and the state [..., G] before -> the state after."""
    token, old = of_token.chunk(3, dim=-1), of_state.chunk(3, dim=-1)
    reset, update = ((t + s).sigmoid() for t, s in zip(token[:2], old[:2], strict=True))
    new = (token[2] + reset * old[2]).tanh()
    return (1.0 - update) * new + update * state


class DominoHead(DSparkHead):
    """DFlash's layers, then the GRU and a projector of [hidden state; GRU's state]."""

    config: DominoConfig

    def __init__(self, config: DominoConfig) -> None:
        super().__init__(config)
        width = config.projector_width
        self.prefix_gru = PrefixGRU(config)
        inner = nn.Linear(config.hidden_size + config.gru_width, width, bias=False)
        outer = nn.Linear(width, config.vocab_size, bias=False)
        self.embed_proj = nn.Sequential(inner, nn.SiLU(), outer)

    @torch.no_grad()
    def begin(self, generator: torch.Generator) -> None:
        """As HeadModule.begin: without a correction."""
        for weight in self.prefix_gru.parameters():
            weight.normal_(0.0, NOISE, generator=generator)
        self.tables[0].zero_()

    @property
    def tables(self) -> list[torch.Tensor]:
        """As HeadModule.tables."""
        return [self.embed_proj.get_parameter("2.weight")]

    @property
    def output_map(self) -> OutputMap | None:
        """As HeadModule.output_map."""
        return _Projector(self)

    def initial_state(self, like: torch.Tensor) -> torch.Tensor:
        """[..., G] zeros, for rows like [..., H]."""
        return like.new_zeros(*like.shape[:-1], self.config.gru_width)

    def features(self, hidden: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """hidden [..., H], state [..., G] after all tokens before -> [..., r]; the correction of
        the logits is output_map of it."""
        out: torch.Tensor = self.embed_proj[1](self.embed_proj[0](torch.cat([hidden, state], -1)))
        return out

    def block_features(self, hidden: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """hidden [A, K, H], embeddings [A, K, H] of the token before each row -> features
        [A, K, r], zero where drafts are not corrected."""
        state, steps = self.initial_state(hidden[:, 0]), []
        for k in range(hidden.shape[1]):
            state = self.prefix_gru(embeddings[:, k], state)
            steps.append(self.features(hidden[:, k], state))
        features = torch.stack(steps, dim=1)
        is_corrected = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(-1)
        return features * (is_corrected >= self.config.prefix_length)


class _Projector:
    """The projector's second map; asked for each time, since decoding replaces it."""

    def __init__(self, head: DominoHead) -> None:
        self._head = head

    @property
    def markov_w2(self) -> nn.Module:
        return self._head.embed_proj[2]
