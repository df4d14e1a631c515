"""DSpark (DeepSeek 2026, arXiv 2607.05147): a parallel backbone, then a light sequential head.
Without that head it is DFlash (z-lab, Block Diffusion for Flash Speculative Decoding)."""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.drafters.base import Chooser, Proposals
from dspark.drafters.calibration import Calibrator
from dspark.drafters.head_drafter import HeadDrafter, stack_present
from dspark.drafters.vocabulary import OutputHead
from dspark.kvcache.pooled_attention import PooledAttention
from dspark.kvcache.row_pool import KVSlot, RowPlan, SlotPool
from dspark.models.draft_layer import DraftAttention, DraftLayer
from dspark.models.dspark_head import DSparkHead
from dspark_kernels.cpu.weight_table import Table


@dataclass(frozen=True, slots=True)
class DSparkSlot:
    """One request: keys and values of its context features, and its draft vocabulary."""

    context: KVSlot
    own: Any


class DSparkDrafter(HeadDrafter):
    """Keeps, for each request, the keys and values of its context features."""

    module: ClassVar[type[DSparkHead]] = DSparkHead

    def __init__(
        self,
        config: DSparkConfig,
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
        self._calibrator = Calibrator(config, self.device)
        self._mask_embedding = self._embedding[config.mask_token_id]

    def _count_weights(self, num_columns: int) -> int:
        config = self.config
        backbone_sizes = (
            p.numel() for name, p in self._head.named_parameters() if "markov_w" not in name
        )
        columns = num_columns * (config.hidden_size + config.markov_rank * config.block_size)
        return int(sum(backbone_sizes) + columns)

    def open(self) -> DSparkSlot:
        return DSparkSlot(self._contexts.open(), self._vocabulary.open())

    @property
    def _contexts(self) -> SlotPool:
        return self._pool

    def fork(self, slot: DSparkSlot, length: int) -> DSparkSlot:
        own = self._vocabulary.fork(slot.own, length)
        return DSparkSlot(self._contexts.fork(slot.context, length), own)

    def close(self, slot: DSparkSlot) -> None:
        slot.context.close()

    def truncate(self, slot: DSparkSlot, length: int) -> None:
        slot.context.length = min(slot.context.length, length)
        self._vocabulary.truncate(slot.own, length)

    def extend(
        self,
        slots: Sequence[DSparkSlot],
        token_ids: Sequence[torch.Tensor],
        taps: Sequence[torch.Tensor],
    ) -> None:
        """As Drafter.extend."""
        features = self._head.context_features(torch.cat(list(taps)))
        sizes = [tap.shape[0] for tap in taps]
        attend, cos, sin = self._plan(slots, sizes)
        for index, layer in enumerate(self._layers()):
            attend.write(index, *layer.self_attn.keys_values(features, cos, sin))
        for slot, ids, size in zip(slots, token_ids, sizes, strict=True):
            slot.context.length += size
            self._vocabulary.extend(slot.own, ids.tolist())

    def propose(
        self, slots: Sequence[DSparkSlot], anchors: torch.Tensor, chooser: Chooser
    ) -> Proposals:
        """As Drafter.propose."""
        hidden = self._backbone(slots, anchors).view(len(slots), self.config.block_rows, -1)
        hidden = hidden[:, -self.block_size :]
        return self._choose_left_to_right(hidden, [slot.own for slot in slots], anchors, chooser)

    def _backbone(self, slots: Sequence[DSparkSlot], anchors: torch.Tensor) -> torch.Tensor:
        """anchors [R] -> hidden states of all block rows [R * block_rows, H], after the final
        norm."""
        hidden = self._block_inputs(anchors).flatten(0, 1)
        attend, cos, sin = self._plan(slots, [self.config.block_rows] * len(slots))
        for index, layer in enumerate(self._layers()):

            def attended(
                x: torch.Tensor, index: int = index, attention: DraftAttention = layer.self_attn
            ) -> torch.Tensor:
                own = attention.keys_values(x, cos, sin)
                return attend(index, attention.queries(x, cos, sin), *own)

            hidden = layer(hidden, attended)
        out: torch.Tensor = self._head.norm(hidden)
        return out

    def _block_inputs(self, anchors: torch.Tensor) -> torch.Tensor:
        """Embeddings of the anchors [R] and the masks behind them [R, block_rows, H]."""
        rows = self._mask_embedding.repeat(len(anchors), self.config.block_rows, 1)
        rows[:, 0] = self._embedding[anchors]
        return rows

    def _choose_left_to_right(
        self, hidden: torch.Tensor, owns: Sequence[Any], anchors: torch.Tensor, chooser: Chooser
    ) -> Proposals:
        """hidden [R, K, H] of the rows that predict; each sees the token chosen before it."""
        markov, confidence = self._head.markov_head, self._head.confidence_head
        vocabulary = self._vocabulary
        known = vocabulary.column_ids(owns)
        base_logits = vocabulary.logits(hidden, owns)
        previous, embedding = anchors, None
        state = markov.initial_state(hidden[:, 0]) if markov else None
        ids, probs, confidence_logits = [], [], []
        for k in range(self.block_size):
            logits = base_logits[:, k]
            if markov and state is not None:
                embedding = markov.embed(previous)
                features, state = markov.step(embedding, hidden[:, k], state)
                logits = logits + vocabulary.bias(features, owns)
            if confidence:
                confidence_logits.append(confidence(hidden[:, k], embedding))
            columns, chosen_probs = chooser.choose(logits, known)
            previous = vocabulary.token_ids(columns, owns)
            ids.append(previous)
            probs.append(
                [
                    None if p is None else vocabulary.distribution(p, own_tokens)
                    for p, own_tokens in zip(chosen_probs, owns, strict=True)
                ]
            )
        confidences = None
        if confidence_logits:
            stacked = torch.stack(confidence_logits, dim=1)
            confidences = self._calibrator(stacked, chooser.are_greedy)
        return Proposals(
            token_ids=torch.stack(ids, dim=1),
            probs=[stack_present(request_probs) for request_probs in zip(*probs, strict=True)],
            confidences=confidences,
        )

    def _plan(
        self, slots: Sequence[DSparkSlot], sizes: Sequence[int]
    ) -> tuple[PooledAttention, torch.Tensor, torch.Tensor]:
        """Attention, cos and sin for the next rows of each request."""
        contexts, window = [slot.context for slot in slots], self.config.sliding_window
        plan = RowPlan(contexts, sizes, causal=False, window=window)
        attend = PooledAttention(self._pool, plan, self.config.attention_scale)
        return attend, *self._rotary.at(plan.positions.to(self.device), plan.end - 1)

    def _layers(self) -> list[DraftLayer]:
        return list(self._head.layers)
