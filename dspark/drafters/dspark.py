"""DSpark: a parallel backbone, then a light sequential head. DFlash is the case without one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dspark.checkpoints.eagle3_config import DraftConfig
from dspark.checkpoints.head_config import HeadConfig
from dspark.drafters.base import Chooser, Proposals
from dspark.drafters.calibration import scaled_confidence
from dspark.drafters.head import DraftLayer, DSparkHead
from dspark.drafters.vocabulary import (
    DraftVocabulary,
    FullVocabulary,
    OutputHead,
    ReducedVocabulary,
)
from dspark.errors import PairMismatchError
from dspark_kernels import KVPool, KVSlot, PooledAttention, RowPlan, SkinnyLinear


@dataclass(frozen=True, slots=True)
class DSparkSlot:
    """One request: keys and values of its context features, and what it may draft from."""

    context: KVSlot
    own: Any


class DSparkDrafter:
    """Keeps, for each request, the keys and values of its context features.

    `embedding` [V, H] and `output_head` [N, H] -> [N, V] are the target's unless the head's own
    file holds different ones.
    """

    def __init__(
        self,
        config: HeadConfig,
        tensors: dict[str, torch.Tensor],
        embedding: torch.Tensor,
        output_head: OutputHead,
        *,
        draft_vocabulary: torch.Tensor | None = None,
        pack: bool = True,
    ) -> None:
        """`draft_vocabulary` [N] are the ids that any request drafts from, beside the tokens that
        it holds already; all without it."""
        self.config = config
        self.block_size = config.block_size
        self.target_layer_ids = config.target_layer_ids
        self.device, self.dtype = embedding.device, embedding.dtype
        own = {name: t.to(self.device, self.dtype) for name, t in tensors.items()}
        self._embedding = own.pop("embed_tokens.weight", embedding)
        head_weight = own.pop("lm_head.weight", None)
        if head_weight is not None:
            output_head = SkinnyLinear(head_weight, pack=pack and draft_vocabulary is None)
        if self._embedding.shape != embedding.shape:
            raise PairMismatchError(
                f"the draft's embedding is {list(self._embedding.shape)}, "
                f"the target's {list(embedding.shape)}"
            )
        with torch.device("meta"):
            self._head = DSparkHead(config)
        self._head.load_state_dict(own, strict=True, assign=True)
        self._head.requires_grad_(False).eval()
        markov = self._head.markov_head
        self._vocabulary: DraftVocabulary = (
            FullVocabulary(output_head, markov, config.final_logit_softcapping)
            if draft_vocabulary is None
            else ReducedVocabulary(
                draft_vocabulary,
                output_head,
                markov,
                softcap=config.final_logit_softcapping,
                pack=pack,
            )
        )
        num_columns = len(embedding) if draft_vocabulary is None else len(draft_vocabulary)
        self.num_weights = sum(
            p.numel() for name, p in self._head.named_parameters() if "markov_w" not in name
        ) + num_columns * (config.hidden_size + config.markov_rank * config.block_size)
        if pack:
            pack_linears(self._head)
        self._rotary = self._head.rotary_table()
        self._pool = KVPool(
            config.num_layers, config.num_kv_heads, config.head_dim, self.device, self.dtype
        )
        self._mask_embedding = self._embedding[config.mask_token_id]

    def open(self) -> DSparkSlot:
        return DSparkSlot(self._pool.open(), self._vocabulary.open())

    def truncate(self, slot: DSparkSlot, length: int) -> None:
        slot.context.length = min(slot.context.length, length)
        self._vocabulary.truncate(slot.own, length)

    def extend(
        self,
        slots: Sequence[DSparkSlot],
        token_ids: Sequence[torch.Tensor],
        taps: Sequence[torch.Tensor],
    ) -> None:
        features = self._head.context_features(torch.cat(list(taps)))
        sizes = [tap.shape[0] for tap in taps]
        attend, cos, sin = self._plan(slots, sizes)
        for index, layer in enumerate(self._layers()):
            attend.write(index, *layer.self_attn.keys_values(features, cos, sin))
        for slot, ids, size in zip(slots, token_ids, sizes, strict=True):
            slot.context.length += size
            self._vocabulary.extend(slot.own, ids)

    def propose(
        self, slots: Sequence[DSparkSlot], anchors: torch.Tensor, chooser: Chooser
    ) -> Proposals:
        hidden = self._backbone(slots, anchors).view(len(slots), self.block_size, -1)
        return self._choose_left_to_right(hidden, [slot.own for slot in slots], anchors, chooser)

    def _backbone(self, slots: Sequence[DSparkSlot], anchors: torch.Tensor) -> torch.Tensor:
        """anchors [R] -> hidden states of all slots [R * K, H], after the final norm."""
        hidden = self._mask_embedding.repeat(len(slots), self.block_size, 1)
        hidden[:, 0] = self._embedding[anchors]
        hidden = hidden.flatten(0, 1)
        attend, cos, sin = self._plan(slots, [self.block_size] * len(slots))
        for index, layer in enumerate(self._layers()):
            x = layer.input_layernorm(hidden)
            query = layer.self_attn.queries(x, cos, sin)
            keys, values = layer.self_attn.keys_values(x, cos, sin)
            hidden = layer.finish(hidden, attend(index, query, keys, values))
        out: torch.Tensor = self._head.norm(hidden)
        return out

    def _choose_left_to_right(
        self, hidden: torch.Tensor, owns: Sequence[Any], anchors: torch.Tensor, chooser: Chooser
    ) -> Proposals:
        """hidden [R, K, H]: slot k sees the token chosen in slot k - 1."""
        markov, confidence = self._head.markov_head, self._head.confidence_head
        vocabulary = self._vocabulary
        base_logits = vocabulary.logits(hidden, owns)
        previous, embedding = anchors, None
        state = markov.initial_state(hidden[:, 0]) if markov else None
        ids, probs, confidences = [], [], []
        for k in range(self.block_size):
            logits = base_logits[:, k]
            if markov and state is not None:
                embedding = markov.embed(previous)
                features, state = markov.step(embedding, hidden[:, k], state)
                logits = logits + vocabulary.bias(features, owns)
            if confidence:
                logits_of_acceptance = confidence(hidden[:, k], embedding)
                temperature = self.config.temperatures[k]
                confidences.append(scaled_confidence(logits_of_acceptance, temperature))
            columns, chosen_probs = chooser.choose(logits)
            previous = vocabulary.token_ids(columns, owns)
            ids.append(previous)
            probs.append(
                [
                    None if p is None else vocabulary.distribution(p, own)
                    for p, own in zip(chosen_probs, owns, strict=True)
                ]
            )
        return Proposals(
            token_ids=torch.stack(ids, dim=1),
            probs=[stack_present(request_probs) for request_probs in zip(*probs, strict=True)],
            confidences=torch.stack(confidences, dim=1) if confidences else None,
        )

    def _plan(
        self, slots: Sequence[DSparkSlot], sizes: Sequence[int]
    ) -> tuple[PooledAttention, torch.Tensor, torch.Tensor]:
        """Attention, cos and sin for the next rows of each request."""
        plan = RowPlan([slot.context for slot in slots], sizes, causal=False)
        attend = PooledAttention(self._pool, plan, self.config.head_dim**-0.5)
        return attend, *self._rotary.at(plan.positions.to(self.device), plan.end - 1)

    def _layers(self) -> list[DraftLayer]:
        return list(self._head.layers)  # type: ignore[arg-type]


def stack_present(step_probs: tuple[torch.Tensor | None, ...]) -> torch.Tensor | None:
    """Distributions [V] of K steps -> [K, V]; None for a greedy request."""
    present = [p for p in step_probs if p is not None]
    return torch.stack(present) if present else None


class _PackedLinear(nn.Module):
    """SkinnyLinear in the place of an nn.Linear."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._linear = SkinnyLinear(linear.weight.detach(), linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._linear(x.contiguous())


def pack_linears(module: nn.Module) -> None:
    """Replace every nn.Linear below `module` by its form for few rows. Decoding only."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, _PackedLinear(child))
        else:
            pack_linears(child)


def check_pair(config: DraftConfig, *, vocab_size: int, hidden_size: int, num_layers: int) -> None:
    """Raises PairMismatchError where the head was not made for a target of these sizes."""
    for what, draft, target in (
        ("hidden size", config.hidden_size, hidden_size),
        ("vocabulary", config.vocab_size, vocab_size),
        ("number of target layers", config.num_target_layers, num_layers),
    ):
        if draft != target:
            raise PairMismatchError(
                f"the draft does not belong to this target: its {what} is {draft}, "
                f"the target's {target}",
                "Use the head that was trained for this model, or --draft none.",
            )
    if max(config.target_layer_ids) >= num_layers - 1:
        raise PairMismatchError(
            f"the draft taps layer {max(config.target_layer_ids)}, but the target's last usable "
            f"layer is {num_layers - 2}",
            "Use the head that was trained for this model, or --draft none.",
        )
