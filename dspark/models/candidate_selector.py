"""The selector of a DFlash 2 head: scores of the likeliest tokens, by the token before."""

import torch
from torch import nn

from dspark.checkpoints.dflash2_config import DFlash2Config

PREDECESSOR_NOISE = 0.02


class CandidateSelector(nn.Module):
    """S(a, b) = U(b) + ⟨A[a] ⊙ P·h, B[b]⟩ for candidates b behind the token a."""

    def __init__(self, config: DFlash2Config) -> None:
        super().__init__()
        shape = (config.vocab_size, config.selector_rank)
        self.hidden_projection = nn.Linear(config.hidden_size, config.selector_rank, bias=False)
        self.predecessor_codebook = nn.Parameter(torch.zeros(shape))
        self.successor_codebook = nn.Parameter(torch.zeros(shape))

    @torch.no_grad()
    def begin(self, generator: torch.Generator) -> None:
        """So that S = U, and both tables get gradients soon."""
        self.predecessor_codebook.normal_(0.0, PREDECESSOR_NOISE, generator=generator)
        self.successor_codebook.zero_()

    def scores(
        self,
        unary: torch.Tensor,
        candidates: torch.Tensor,
        projected: torch.Tensor,
        previous: torch.Tensor,
    ) -> torch.Tensor:
        """unary logits [R, C] of candidate tokens [R, C], projected hidden states [R, r] and the
        tokens before [R] -> scores [R, C]."""
        context = self.predecessor_codebook[previous] * projected
        return unary + (self.successor_codebook[candidates] @ context.unsqueeze(-1)).squeeze(-1)
