"""Training blocks: random anchors in an answer, and all their blocks in one pass of the head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dspark.models.draft_layer import DraftAttention, DraftLayer
from dspark.models.dspark_head import DSparkHead
from dspark_kernels import RotaryTable


@dataclass(frozen=True, slots=True)
class Blocks:
    """A blocks of K positions in one sequence of S tokens.

    Position k of the block at anchor p has input token k of [x_p, mask, mask, ...], previous token
    x_(p+k), label x_(p+k+1), and is compared with the target's logits at place p + k.
    """

    token_ids: torch.Tensor  # [S]
    anchors: torch.Tensor  # [A], rising
    previous: torch.Tensor  # [A, K]
    labels: torch.Tensor  # [A, K]
    supervised: torch.Tensor  # [A, K] bool: the label is inside the sequence

    @property
    def block_size(self) -> int:
        return self.labels.shape[1]

    @property
    def positions(self) -> torch.Tensor:
        """[A, K] places of the inputs, and of the target logits they are compared with."""
        offsets = torch.arange(self.block_size, device=self.anchors.device)
        return self.anchors.unsqueeze(1) + offsets

    def some(self, start: int, stop: int) -> "Blocks":
        """Blocks start to stop - 1 of the same sequence."""
        span = slice(start, stop)
        parts = (self.anchors, self.previous, self.labels, self.supervised)
        return Blocks(self.token_ids, *(part[span] for part in parts))


# (module, rotary table, embedding [V, H], taps [S, T * H] and blocks of each text) -> hidden states
# [A, K, H] of every position of all texts, after the head's final norm, each shown the tokens that
# truly came before it
TrainingHidden = Callable[
    [Any, RotaryTable, torch.Tensor, Sequence[torch.Tensor], Sequence[Blocks]], torch.Tensor
]


def sample_blocks(
    token_ids: torch.Tensor,
    answer_start: int,
    num_anchors: int,
    block_size: int,
    generator: torch.Generator,
) -> Blocks:
    """Up to num_anchors anchors among answer tokens that are followed by another answer token."""
    length = token_ids.shape[0]
    num_candidates = max(length - 1 - answer_start, 0)
    indices = torch.randperm(num_candidates, generator=generator)[:num_anchors].sort().values
    anchors = (indices + answer_start).to(token_ids.device)
    inputs = anchors.unsqueeze(1) + torch.arange(block_size, device=token_ids.device)
    supervised = inputs + 1 < length
    return Blocks(
        token_ids=token_ids,
        anchors=anchors,
        previous=token_ids[inputs.clamp(max=length - 1)],
        labels=token_ids[(inputs + 1).clamp(max=length - 1)],
        supervised=supervised,
    )


def block_hidden(
    head: DSparkHead,
    rotary: RotaryTable,
    embedding: torch.Tensor,
    taps: torch.Tensor,
    blocks: Blocks,
) -> torch.Tensor:
    """As `packed_hidden`, of one text."""
    return packed_hidden(head, rotary, embedding, [taps], [blocks])


def packed_hidden(
    head: DSparkHead,
    rotary: RotaryTable,
    embedding: torch.Tensor,
    taps: Sequence[torch.Tensor],
    blocks: Sequence[Blocks],
) -> torch.Tensor:
    """Hidden states [A, K, H] of every position of all texts, after the head's final norm.

    Row (a, k) sees the context features of its own text before anchor a, and the whole of its own
    block. Texts are one behind the other, without padding, and only apart where rows attend.
    """
    rows, device = head.config.block_rows, embedding.device
    lasts, counts = [int(each.anchors[-1]) for each in blocks], [len(b.anchors) for b in blocks]
    features = head.context_features(
        torch.cat([each[:last] for each, last in zip(taps, lasts, strict=True)])
    )
    seen = [torch.arange(last, device=device) for last in lasts]
    first = torch.cat([each.positions[:, :1] for each in blocks])
    places = first + torch.arange(rows, device=device)
    context = rotary.at(torch.cat(seen), max(lasts))
    block_rotary = rotary.at(places.flatten(), max(lasts) + rows)
    visible = [s < each.anchors.unsqueeze(1) for s, each in zip(seen, blocks, strict=True)]
    inputs = torch.full_like(places, head.config.mask_token_id)
    inputs[:, 0] = torch.cat([each.token_ids[each.anchors] for each in blocks])
    hidden = embedding[inputs].flatten(0, 1).to(taps[0].dtype)
    layer: DraftLayer
    for layer in head.layers:  # type: ignore[assignment]

        def attended(x: torch.Tensor, attention: DraftAttention = layer.self_attn) -> torch.Tensor:
            query = attention.queries(x, *block_rotary).unflatten(0, (-1, rows)).split(counts)
            of_context = _split(attention.keys_values(features, *context), lasts)
            own = _split(attention.keys_values(x, *block_rotary), [n * rows for n in counts])
            texts = zip(query, of_context, own, visible, strict=True)
            return torch.cat([attend_blocks(attention, *each) for each in texts])

        hidden = layer(hidden, attended)
    out: torch.Tensor = head.norm(hidden)
    return out.view(len(first), rows, -1)[:, -blocks[0].block_size :]


def _split(
    pair: tuple[torch.Tensor, torch.Tensor], sizes: list[int]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    keys, values = pair
    return list(zip(keys.split(sizes), values.split(sizes), strict=True))


def attend_blocks(
    attention: DraftAttention,
    query: torch.Tensor,
    context: tuple[torch.Tensor, torch.Tensor],
    own: tuple[torch.Tensor, torch.Tensor],
    visible: torch.Tensor,
) -> torch.Tensor:
    """query [A, K, heads, D]; context [S, kv, D] shared by all; own [A * N, kv, D], N rows for
    each block; visible [A, S].

    Returns [A * K, heads * D]. One softmax over the context's scores and the block's own.
    """
    num_anchors, block_size, num_heads, head_dim = query.shape
    num_kv_heads = attention.num_kv_heads
    rows = num_heads // num_kv_heads * block_size
    folded = query.unflatten(2, (num_kv_heads, -1)).permute(2, 0, 1, 3, 4) * attention.scale
    folded = folded.reshape(num_kv_heads, num_anchors, rows, head_dim)
    context_keys, context_values = (t.transpose(0, 1) for t in context)
    own_keys, own_values = (
        t.unflatten(0, (num_anchors, len(t) // num_anchors)).permute(2, 0, 1, 3) for t in own
    )  # [kv, A, N, D]
    to_context = folded.flatten(1, 2) @ context_keys.transpose(1, 2)
    to_context = to_context.unflatten(1, (num_anchors, rows))
    to_context = to_context.masked_fill(~visible.unsqueeze(1), float("-inf"))
    to_own = folded @ own_keys.transpose(2, 3)
    probs = torch.cat([to_context, to_own], dim=-1).softmax(dim=-1)
    size = visible.shape[1]
    out: torch.Tensor = (probs[..., :size].flatten(1, 2) @ context_values).view_as(folded)
    out = out + probs[..., size:] @ own_values
    out = out.view(num_kv_heads, num_anchors, block_size, -1, head_dim).permute(1, 2, 0, 3, 4)
    return out.reshape(num_anchors * block_size, num_heads * head_dim)
