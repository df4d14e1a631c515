"""The loss of DFlash 2's selector: cross-entropy among the likeliest tokens of each row.

The authors published no loss; this is the later one of SpecForge: the true token before each row,
strictly the likeliest tokens, no term where the label is not one of them.
"""

from dataclasses import replace

import torch
from torch.utils.checkpoint import checkpoint

from dspark.drafters.vocabulary import soft_cap
from dspark.graft.train.loss import OutputHead, RowTerms
from dspark.graft.train.supervised_rows import Rows
from dspark.models.candidate_selector import CandidateSelector


def selector_loss(
    selector: CandidateSelector,
    rows: Rows,
    terms: RowTerms,
    head: OutputHead,
    tokens: torch.Tensor | None,
    labels: torch.Tensor,
    weights: torch.Tensor,
    chunk_rows: int,
) -> tuple[torch.Tensor, RowTerms]:
    """The sum over rows of weights [R] times the cross-entropy of labels [R], columns of `head` as
    the candidates are; `tokens` [n] of the columns, None if columns are tokens.

    Also the terms of what is drafted from: the scores' distribution, zero at all other tokens.
    """
    columns = terms.candidates
    parts = zip(rows.hidden.split(chunk_rows), columns.split(chunk_rows), strict=True)
    unary = torch.cat(
        [
            checkpoint(_logits, *part, head.weight, head.softcap, use_reentrant=False)
            for part in parts
        ]
    )
    candidates = columns if tokens is None else tokens[columns]
    projected = selector.hidden_projection(rows.hidden)
    log_probs = selector.scores(unary, candidates, projected, rows.previous).log_softmax(-1)
    of_label = log_probs.masked_fill(columns != labels.unsqueeze(1), 0.0).sum(-1)
    shared = torch.minimum(log_probs.detach().exp(), terms.target_probs).sum(-1)
    return -(weights * of_label).sum(), replace(terms, accept_rate=shared)


def _logits(
    hidden: torch.Tensor, columns: torch.Tensor, weight: torch.Tensor, cap: float | None
) -> torch.Tensor:
    """hidden [n, H], columns [n, C] of weight [V, H] -> [n, C]. Recomputed in the backward pass:
    the rows of weight take C times the memory of hidden."""
    return soft_cap((weight[columns].to(hidden.dtype) @ hidden.unsqueeze(-1)).squeeze(-1), cap)
