"""Sequential heads (DSpark, DeepSeek 2026): the bias of the chosen token on the next position.

vanilla and gated see the last token only, rnn carries a state along the block.
"""

import torch
from torch import nn

from dspark.checkpoints.dspark_config import DSparkConfig


class MarkovHead(nn.Module):
    """bias = W2 · W1[previous token]: a bigram table of rank r."""

    def __init__(self, config: DSparkConfig) -> None:
        super().__init__()
        self.rank = config.markov_rank
        self.markov_w1 = nn.Embedding(config.vocab_size, self.rank)
        self.markov_w2 = nn.Linear(self.rank, config.num_columns, bias=False)

    def initial_state(self, like: torch.Tensor) -> torch.Tensor:
        """The state before the first position: [..., r] zeros (only the rnn head changes it)."""
        return like.new_zeros(*like.shape[:-1], self.rank)

    def embed(self, previous_ids: torch.Tensor) -> torch.Tensor:
        """[...] ids -> [..., r]."""
        out: torch.Tensor = self.markov_w1(previous_ids)
        return out

    def step(
        self, embedding: torch.Tensor, hidden: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """embedding [..., r], hidden [..., H], state [..., r] -> features [..., r], new state.

        The bias is markov_w2(features).
        """
        return embedding, state


class GatedMarkovHead(MarkovHead):
    """The embedding is gated by sigmoid(Linear([hidden; embedding]))."""

    def __init__(self, config: DSparkConfig) -> None:
        super().__init__(config)
        self.gate_proj = nn.Linear(config.hidden_size + self.rank, self.rank)

    def step(
        self, embedding: torch.Tensor, hidden: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As MarkovHead.step."""
        gate = self.gate_proj(torch.cat([hidden, embedding], dim=-1)).sigmoid()
        return gate * embedding, state


class RecurrentHead(MarkovHead):
    """A state of size r from one Linear([state; embedding; hidden]): gate, candidate, output."""

    def __init__(self, config: DSparkConfig) -> None:
        super().__init__(config)
        self.joint_proj = nn.Linear(2 * self.rank + config.hidden_size, 3 * self.rank)

    def step(
        self, embedding: torch.Tensor, hidden: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As MarkovHead.step."""
        joint = self.joint_proj(torch.cat([state, embedding, hidden], dim=-1))
        gate, candidate, output = joint.chunk(3, dim=-1)
        gate = gate.sigmoid()
        return output.tanh(), gate * state + (1.0 - gate) * candidate.tanh()


def build_markov_head(config: DSparkConfig) -> MarkovHead | None:
    """None for a head without one, which makes DSpark the same as DFlash."""
    if config.markov_type == "none":
        return None
    kinds = {"vanilla": MarkovHead, "gated": GatedMarkovHead, "rnn": RecurrentHead}
    return kinds[config.markov_type](config)


class ConfidenceHead(nn.Module):
    """logit of the probability that the target accepts a draft, given all before it were."""

    def __init__(self, config: DSparkConfig) -> None:
        super().__init__()
        self.with_markov = config.confidence_with_markov
        width = config.hidden_size + (config.markov_rank if self.with_markov else 0)
        self.proj = nn.Linear(width, 1)

    def forward(self, hidden: torch.Tensor, embedding: torch.Tensor | None) -> torch.Tensor:
        """hidden [..., H], embedding of the previous token [..., r] -> logits [...]."""
        features = hidden
        if self.with_markov:
            assert embedding is not None
            features = torch.cat([hidden, embedding], dim=-1)
        out: torch.Tensor = self.proj(features)
        return out.float().squeeze(-1)
