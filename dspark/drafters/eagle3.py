"""EAGLE-3 (Li et al. 2025): one layer that drafts token by token from its own hidden state. MTP-1
drafts once.

The row of place i is made of the taps of token i and of token i + 1, at rope position i.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from dspark.checkpoints.eagle3_config import Eagle3Config
from dspark.drafters.base import Chooser, Proposals
from dspark.drafters.head_drafter import HeadDrafter, stack_present
from dspark.drafters.vocabulary import OutputHead
from dspark.kvcache.pooled_attention import PooledAttention
from dspark.kvcache.row_pool import KVSlot, RowPlan
from dspark.models.eagle3_head import Eagle3Head
from dspark_kernels.cpu.weight_table import Table


@dataclass(slots=True)
class Eagle3Slot:
    """One request. The last token's feature has no row yet: its next token is the anchor."""

    rows: KVSlot  # of every token but the last
    own: Any
    features: list[torch.Tensor] = field(default_factory=list)  # fc(taps) [H] of every token


class Eagle3Drafter(HeadDrafter):
    """Keeps, for each request, keys and values of its rows and the features behind them."""

    module = Eagle3Head

    def __init__(
        self,
        config: Eagle3Config,
        tensors: MutableMapping[str, torch.Tensor],
        embedding: Table,
        output_head: OutputHead,
        *,
        draft_vocabulary: torch.Tensor | None = None,
        prepack: bool = True,
    ) -> None:
        self.config = config
        parts = (config, tensors, embedding, output_head)
        super().__init__(*parts, draft_vocabulary=draft_vocabulary, prepack=prepack)

    def _count_weights(self, num_columns: int) -> int:
        num_layer_weights = sum(p.numel() for p in self._head.layers.parameters())
        a_token = num_layer_weights + num_columns * self.config.hidden_size
        return int(self._head.fc.weight.numel() + self.block_size * a_token)

    def open(self) -> Eagle3Slot:
        return Eagle3Slot(self._pool.open(), self._vocabulary.open())

    def close(self, slot: Eagle3Slot) -> None:
        slot.rows.close()

    def fork(self, slot: Eagle3Slot, length: int) -> Eagle3Slot:
        features = slot.features[:length]
        rows = self._pool.fork(slot.rows, max(0, len(features) - 1))
        return Eagle3Slot(rows, self._vocabulary.fork(slot.own, length), features)

    def truncate(self, slot: Eagle3Slot, length: int) -> None:
        del slot.features[length:]
        slot.rows.length = max(0, len(slot.features) - 1)
        self._vocabulary.truncate(slot.own, length)

    def extend(
        self,
        slots: Sequence[Eagle3Slot],
        token_ids: Sequence[torch.Tensor],
        taps: Sequence[torch.Tensor],
    ) -> None:
        """As Drafter.extend."""
        features = self._head.fc(torch.cat(list(taps))).split([len(tap) for tap in taps])
        for slot, ids, own_features in zip(slots, token_ids, features, strict=True):
            slot.features.extend(own_features.unbind())
            self._vocabulary.extend(slot.own, ids.tolist())
        self._write_rows(slots, token_ids)

    def propose(
        self, slots: Sequence[Eagle3Slot], anchors: torch.Tensor, chooser: Chooser
    ) -> Proposals:
        """As Drafter.propose. Every slot holds at least one token."""
        hidden = torch.stack([slot.features[-1] for slot in slots])
        owns, vocabulary = [slot.own for slot in slots], self._vocabulary
        known = vocabulary.column_ids(owns)
        previous, ids, probs = anchors, [], []
        with _kept_lengths(slots):
            for _ in range(self.block_size):
                hidden = self._step(slots, previous, hidden)
                logits = vocabulary.logits(self._head.norm(hidden).unsqueeze(1), owns)[:, 0]
                columns, chosen = chooser.choose(logits, known)
                previous = vocabulary.token_ids(columns, owns)
                ids.append(previous)
                probs.append(
                    [
                        None if p is None else vocabulary.distribution(p, own_tokens)
                        for p, own_tokens in zip(chosen, owns, strict=True)
                    ]
                )
        return Proposals(
            token_ids=torch.stack(ids, dim=1),
            probs=[stack_present(request_probs) for request_probs in zip(*probs, strict=True)],
            confidences=None,
        )

    def _write_rows(self, slots: Sequence[Eagle3Slot], token_ids: Sequence[torch.Tensor]) -> None:
        """Rows of the tokens whose next token is now known. One layer: no row needs another's."""
        sizes = [len(slot.features) - 1 - slot.rows.length for slot in slots]
        if not sum(sizes):
            return
        features = [f for slot in slots for f in slot.features[slot.rows.length : -1]]
        followers = [ids[len(ids) - size :] for ids, size in zip(token_ids, sizes, strict=True)]
        attend, cos, sin = self._plan(slots, sizes)
        layer = self._head.layer
        x = self._head.inputs(self._embedding[torch.cat(followers)], torch.stack(features))
        attend.write(0, *layer.self_attn.keys_values(x, cos, sin))
        for slot, size in zip(slots, sizes, strict=True):
            slot.rows.length += size

    def _step(
        self, slots: Sequence[Eagle3Slot], token_ids: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        """One more row for each request: token_ids [R], hidden [R, H] -> hidden [R, H]."""
        attend, cos, sin = self._plan(slots, [1] * len(slots))
        layer = self._head.layer
        x = self._head.inputs(self._embedding[token_ids], hidden)
        query = layer.self_attn.queries(x, cos, sin)
        attended = attend(0, query, *layer.self_attn.keys_values(x, cos, sin))
        for slot in slots:
            slot.rows.length += 1
        out: torch.Tensor = layer.finish(hidden, attended)
        return out

    def _plan(
        self, slots: Sequence[Eagle3Slot], sizes: Sequence[int]
    ) -> tuple[PooledAttention, torch.Tensor, torch.Tensor]:
        """Attention, cos and sin for the next rows of each request."""
        plan = RowPlan([slot.rows for slot in slots], sizes, causal=True)
        attend = PooledAttention(self._pool, plan, self.config.attention_scale)
        return attend, *self._rotary.at(plan.positions.to(self.device), plan.end - 1)


@contextmanager
def _kept_lengths(slots: Sequence[Eagle3Slot]) -> Iterator[None]:
    """Rows written inside become scratch again."""
    lengths = [slot.rows.length for slot in slots]
    try:
        yield
    finally:
        for slot, length in zip(slots, lengths, strict=True):
            slot.rows.length = length
