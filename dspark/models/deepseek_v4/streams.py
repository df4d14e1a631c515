"""The streams that DeepSeek-V4's blocks mix instead of one residual: hyper-connections.

Mixing is in float32, as in the target's own forward.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from dspark.checkpoints.deepseek_v4_config import DeepseekV4HeadConfig
from dspark.models.deepseek_v4.norm_rotate import norm

Weights = Mapping[str, torch.Tensor]


class StreamMixer:
    """One of a block's two hyper-connections: the input of a sub-layer from the streams, and the
    update of the streams by its output."""

    def __init__(self, config: DeepseekV4HeadConfig, weights: Weights, name: str) -> None:
        self._config = config
        self._fn, self._base = weights[f"{name}_fn"], weights[f"{name}_base"]
        self._scale = weights[f"{name}_scale"]

    def __call__(self, streams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """streams [..., S, H] -> the sub-layer's input [..., H], post [..., S], mix [..., S, S]."""
        config, count = self._config, self._config.num_streams
        sizes = [count, count, count * count]
        projected = _projected(streams, self._fn, config.rms_norm_eps).split(sizes, dim=-1)
        bases = self._base.split(sizes)
        pre, post, mix = (
            part * scale + base
            for part, scale, base in zip(projected, self._scale, bases, strict=True)
        )
        mix = mix.unflatten(-1, (count, count)).softmax(-1) + config.stream_eps
        mix = mix / (mix.sum(-2, keepdim=True) + config.stream_eps)
        for _ in range(config.sinkhorn_steps - 1):
            mix = mix / (mix.sum(-1, keepdim=True) + config.stream_eps)
            mix = mix / (mix.sum(-2, keepdim=True) + config.stream_eps)
        return _collapsed(streams, pre.sigmoid() + config.stream_eps), 2.0 * post.sigmoid(), mix


def taken_up(
    streams: torch.Tensor, out: torch.Tensor, post: torch.Tensor, mix: torch.Tensor
) -> torch.Tensor:
    """streams [..., S, H] after a sub-layer's output [..., H]."""
    dtype = streams.dtype
    mixed = mix.to(dtype).transpose(-1, -2) @ streams
    return post.to(dtype).unsqueeze(-1) * out.unsqueeze(-2) + mixed


def collapse(streams: torch.Tensor, config: DeepseekV4HeadConfig, weights: Weights) -> torch.Tensor:
    """The last block's streams [..., S, H] -> [..., H], not yet normed."""
    mixes = _projected(streams, weights["hc_head_fn"], config.rms_norm_eps)
    pre = (mixes * weights["hc_head_scale"] + weights["hc_head_base"]).sigmoid()
    return _collapsed(streams, pre + config.stream_eps)


def _projected(streams: torch.Tensor, fn: torch.Tensor, eps: float) -> torch.Tensor:
    return F.linear(norm(streams.flatten(-2).float(), None, eps), fn)


def _collapsed(streams: torch.Tensor, pre: torch.Tensor) -> torch.Tensor:
    return (pre.unsqueeze(-1) * streams).sum(-2).to(streams.dtype)
