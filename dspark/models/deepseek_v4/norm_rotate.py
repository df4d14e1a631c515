"""Norm and RoPE of DeepSeek-V4: in float32, on pairs of adjacent dimensions."""

import torch
import torch.nn.functional as F


def norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """RMSNorm of x [..., D] in float32, scaled before it is rounded."""
    normed = F.rms_norm(x.float(), (x.shape[-1],), weight, eps)
    return normed.to(x.dtype)


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate the last dimensions of x [..., D], in adjacent pairs, by angles [..., pairs]."""
    fixed, turning = x.split([x.shape[-1] - 2 * angles.shape[-1], 2 * angles.shape[-1]], dim=-1)
    even, odd = turning.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([fixed, turned.to(x.dtype)], dim=-1)
