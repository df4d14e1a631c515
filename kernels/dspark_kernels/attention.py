"""Attention of a few new rows of one request over its cached keys and values."""

import torch
import torch.nn.functional as F


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, causal: bool, scale: float
) -> torch.Tensor:
    """query [N, heads, D]; keys, values [kv_heads, L, D], the last N of L being the new rows.

    causal: row i sees all but the N - 1 - i newest keys; otherwise every row sees all L.
    Returns [N, heads * D]. Query heads of one group are folded into rows, so that the keys are
    read once a group.
    """
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads, length, _ = keys.shape
    group = num_heads // num_kv_heads
    folded = query.view(num_rows, num_kv_heads, group, head_dim).permute(1, 2, 0, 3)
    folded = folded.reshape(1, num_kv_heads, group * num_rows, head_dim)
    mask = None
    if causal and num_rows > 1:
        mask = _causal_mask(num_rows, length, query.device).repeat(group, 1)
    out = F.scaled_dot_product_attention(
        folded, keys.unsqueeze(0), values.unsqueeze(0), attn_mask=mask, scale=scale
    )
    out = out.view(num_kv_heads, group, num_rows, head_dim).permute(2, 0, 1, 3)
    return out.reshape(num_rows, num_heads * head_dim)


def _causal_mask(num_rows: int, length: int, device: torch.device) -> torch.Tensor:
    """[N, L] bool, True where a row may look."""
    newest_visible = torch.arange(length - num_rows, length, device=device).unsqueeze(1)
    return torch.arange(length, device=device).unsqueeze(0) <= newest_visible
