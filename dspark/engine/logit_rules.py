"""What changes one request's logits, place by place: penalties, a bias, a grammar.

Each place's rule follows from the tokens before it, drafts of the same block among them, so that a
draft is accepted exactly where plain decoding would have written it.
"""

from collections.abc import Sequence

import torch

from dspark.config import LogitsConfig
from dspark.text.grammar import Matcher

FORBIDDEN = float("-inf")


class LogitRules:
    """Of one request, whose `written` grows as its tokens are committed."""

    def __init__(
        self,
        config: LogitsConfig,
        prompt_ids: Sequence[int],
        written: Sequence[int],
        num_tokens: int,
        device: torch.device,
        matcher: Matcher | None = None,
    ) -> None:
        """`num_tokens`: of the target's vocabulary, on whose device the logits are."""
        self._config, self._written, self._matcher = config, written, matcher
        self._counts = torch.zeros(num_tokens, device=device)  # how often each token is written
        self._num_counted = 0
        self._is_in_prompt = _count(self._counts.clone(), prompt_ids) > 0
        self._bias = torch.zeros(num_tokens, device=device)
        if config.logit_bias:
            ids, added = zip(*config.logit_bias, strict=True)
            self._bias[torch.tensor(ids, device=device)] = torch.tensor(added, device=device)

    def adjust(self, logits: torch.Tensor, drafts: Sequence[int]) -> torch.Tensor:
        """logits [N, V], the first after the written tokens, each next one after one more draft ->
        float32 [N, V]."""
        rows = [self.adjust_row(row, drafts[:at]) for at, row in enumerate(logits)]
        return torch.stack(rows)

    def adjust_row(
        self, logits: torch.Tensor, drafts: Sequence[int], token_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """logits [X] of the place after the written tokens and `drafts` -> float32 [X]. Columns are
        tokens, unless token_ids [X] maps them."""
        scores = logits.float()
        if self._config.has_penalties:
            scores = self._penalized(scores, drafts, token_ids)
        if self._config.logit_bias:
            scores = scores + _columns(self._bias, token_ids)
        return scores if self._matcher is None else self._masked(scores, drafts, token_ids)

    def _penalized(
        self, scores: torch.Tensor, drafts: Sequence[int], token_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """Repetition's as in Keskar et al. 2019 (prompt and answer), then OpenAI's (answer)."""
        c, counts = self._config, self._counted(drafts)
        if c.repetition_penalty != 1:
            is_seen = _columns(self._is_in_prompt | (counts > 0), token_ids)
            p = c.repetition_penalty
            lowered = torch.where(scores < 0, scores * p, scores / p)
            scores = torch.where(is_seen, lowered, scores)
        counts = _columns(counts, token_ids)
        return scores - c.frequency_penalty * counts - c.presence_penalty * (counts > 0)

    def _counted(self, drafts: Sequence[int]) -> torch.Tensor:
        """[V]: how often each token is among the written ones and the drafts."""
        new = self._written[self._num_counted :]
        self._num_counted += len(new)
        _count(self._counts, new)
        return _count(self._counts.clone(), drafts) if drafts else self._counts

    def _masked(
        self, scores: torch.Tensor, drafts: Sequence[int], token_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """Behind a draft that the grammar refuses nothing is masked: no such row is read."""
        assert self._matcher is not None
        allowed = self._matcher.allowed_after(self._written, drafts)
        if allowed is None:
            return scores
        is_allowed = _columns(allowed.to(scores.device), token_ids)
        if token_ids is not None and not bool(is_allowed.any()):
            return scores  # a draft vocabulary without any of them: its draft will be refused
        return scores.masked_fill(~is_allowed, FORBIDDEN)


def _columns(values: torch.Tensor, token_ids: torch.Tensor | None) -> torch.Tensor:
    return values if token_ids is None else values[token_ids.to(values.device)]


def _count(counts: torch.Tensor, token_ids: Sequence[int]) -> torch.Tensor:
    """Adds them in place."""
    ids = torch.tensor(token_ids, device=counts.device, dtype=torch.long)
    return counts.index_add_(0, ids, counts.new_ones(len(ids)))
