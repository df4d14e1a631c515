"""Training blocks of an EAGLE-3 head: drafted token by token, as in decoding.

The row of place i is made of the feature of token i and the embedding of token i + 1. The head
sees such rows for the tokens before an anchor; after it, its own hidden states replace the features
(training-time test, Li et al. 2025).
"""

from collections.abc import Sequence

import torch

from dspark.drafters.training_blocks import Blocks, attend_blocks
from dspark.models.eagle3_head import Eagle3Head
from dspark_kernels import RotaryTable


def each_unrolled(
    head: Eagle3Head,
    rotary: RotaryTable,
    embedding: torch.Tensor,
    taps: Sequence[torch.Tensor],
    blocks: Sequence[Blocks],
) -> torch.Tensor:
    """As `unrolled_hidden`, of several texts, one by one."""
    texts = zip(taps, blocks, strict=True)
    return torch.cat([unrolled_hidden(head, rotary, embedding, *each) for each in texts])


def unrolled_hidden(
    head: Eagle3Head,
    rotary: RotaryTable,
    embedding: torch.Tensor,
    taps: torch.Tensor,
    blocks: Blocks,
) -> torch.Tensor:
    """Hidden states [A, K, H] of every position, after the head's final norm; teacher-forced.

    Position k sees the rows before the anchor, and those of positions 1 to k of its own block.
    """
    layer, last = head.layer, int(blocks.anchors[-1])
    features = head.fc(taps[:last])
    followers = embedding[blocks.token_ids[1 : last + 1]].to(taps.dtype)
    places = torch.arange(last, device=taps.device)
    context = layer.self_attn.keys_values(
        head.inputs(followers, features), *rotary.at(places, last)
    )
    visible = places < blocks.anchors.unsqueeze(1)  # [A, last], including the row of position 0
    hidden = features[blocks.anchors - 1]
    block_rows: list[tuple[torch.Tensor, torch.Tensor]] = []
    drafted = []
    for k in range(blocks.block_size):
        x = head.inputs(embedding[blocks.previous[:, k]].to(taps.dtype), hidden)
        turn = rotary.at(blocks.anchors - 1 + k, last + blocks.block_size)
        if k:
            block_rows.append(layer.self_attn.keys_values(x, *turn))
        query = layer.self_attn.queries(x, *turn).unsqueeze(1)  # [A, 1, heads, D]
        attended = attend_blocks(
            layer.self_attn, query, context, _stacked(block_rows, context), visible
        )
        hidden = layer.finish(hidden, attended)
        drafted.append(hidden)
    out: torch.Tensor = head.norm(torch.stack(drafted, dim=1))
    return out


def _stacked(
    own: list[tuple[torch.Tensor, torch.Tensor]], like: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """k pairs of [A, kv, D] -> two [A * k, kv, D]."""
    if not own:
        return like[0][:0], like[1][:0]
    keys, values = zip(*own, strict=True)
    return torch.stack(keys, dim=1).flatten(0, 1), torch.stack(values, dim=1).flatten(0, 1)
