"""A chooser that shows what a drafter sees when it has drafted given tokens."""

from collections.abc import Sequence

import torch


class Forced:
    """Chooses given tokens and keeps the logits it was shown."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = iter(tokens)
        self.logits: list[torch.Tensor] = []
        self.are_greedy = [True]

    def choose(
        self, logits: torch.Tensor, token_ids: object = None
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
        self.logits.append(logits[0])
        return torch.tensor([next(self._tokens)]), [None]
