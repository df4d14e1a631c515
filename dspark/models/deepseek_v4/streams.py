"""The streams that DeepSeek-V4's blocks mix instead of one residual: hyper-connections.

Mixing is in float32, as in the target's own forward, and row by row the same in any batch.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from dspark.models.deepseek_v4.row_wise import by_rows, ordered_sum, unit

Weights = Mapping[str, torch.Tensor]
Linear = Callable[[torch.Tensor], torch.Tensor]


class StreamSizes(Protocol):
    @property
    def num_streams(self) -> int: ...

    @property
    def sinkhorn_steps(self) -> int: ...

    @property
    def stream_eps(self) -> float: ...

    @property
    def rms_norm_eps(self) -> float: ...


class StreamMixer:
    """One of a block's two hyper-connections: the input of a sub-layer from the streams, and the
    update of the streams by its output."""

    def __init__(self, config: StreamSizes, weights: Weights, name: str, project: Linear) -> None:
        """`project`: [N, S * H] -> [N, (2 + S) * S], by the matrix `{name}_fn`."""
        self._config, self._project = config, project
        self._base, self._scale = weights[f"{name}_base"], weights[f"{name}_scale"]

    def __call__(self, streams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """streams [..., S, H] -> the sub-layer's input [..., H], post [..., S], mix [..., S, S]."""
        config, count = self._config, self._config.num_streams
        sizes = [count, count, count * count]
        projected = _projected(streams, self._project, config.rms_norm_eps).split(sizes, dim=-1)
        bases = self._base.split(sizes)
        pre, post, mix = (
            part * scale + base
            for part, scale, base in zip(projected, self._scale, bases, strict=True)
        )
        shape = streams.shape[:-2]
        mix = by_rows(_softmax, mix.reshape(-1, count, count)) + config.stream_eps
        mix = mix / (ordered_sum(mix, -2) + config.stream_eps)
        for _ in range(config.sinkhorn_steps - 1):
            mix = mix / (ordered_sum(mix, -1) + config.stream_eps)
            mix = mix / (ordered_sum(mix, -2) + config.stream_eps)
        opened = by_rows(torch.sigmoid, torch.cat([pre, post], -1).reshape(-1, 2 * count))
        pre, post = opened.view(*shape, 2 * count).split(count, dim=-1)
        return (
            _collapsed(streams, pre + config.stream_eps),
            2.0 * post,
            mix.view(*shape, count, count),
        )


def taken_up(
    streams: torch.Tensor, out: torch.Tensor, post: torch.Tensor, mix: torch.Tensor
) -> torch.Tensor:
    """streams [..., S, H] after a sub-layer's output [..., H]."""
    dtype = streams.dtype
    mixed = post.to(dtype).unsqueeze(-1) * out.unsqueeze(-2)
    for index, stream in enumerate(streams.unbind(-2)):
        mixed = mixed + mix[..., index, :, None].to(dtype) * stream.unsqueeze(-2)
    return mixed


def collapse(
    streams: torch.Tensor, config: StreamSizes, weights: Weights, project: Linear
) -> torch.Tensor:
    """The last block's streams [..., S, H] -> [..., H], not yet normed. `project`: [N, S * H] ->
    [N, S], by hc_head_fn."""
    mixes = _projected(streams, project, config.rms_norm_eps)
    scaled = mixes * weights["hc_head_scale"] + weights["hc_head_base"]
    pre = by_rows(torch.sigmoid, scaled.reshape(-1, config.num_streams)).view_as(scaled)
    return _collapsed(streams, pre + config.stream_eps)


def _softmax(row: torch.Tensor) -> torch.Tensor:
    return row.softmax(-1)


def _projected(streams: torch.Tensor, project: Linear, eps: float) -> torch.Tensor:
    flat = unit(streams.flatten(-2).float(), eps)
    out: torch.Tensor = project(flat.flatten(0, -2)).unflatten(0, streams.shape[:-2])
    return out


def _collapsed(streams: torch.Tensor, pre: torch.Tensor) -> torch.Tensor:
    weighed = [pre[..., i, None] * stream for i, stream in enumerate(streams.unbind(-2))]
    return ordered_sum(torch.stack(weighed), 0)[0].to(streams.dtype)
