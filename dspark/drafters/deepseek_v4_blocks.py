"""The parts of a DeepSeek-V4 block as its draft head uses them: mixed streams, attention of few
queries over one shared key that is the value too, and routed experts.

fp32 is where the target's own forward has it: streams' weights, norms, routing, softmax.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from dspark.checkpoints.deepseek_v4_config import QUANTISED_RUN, DeepseekV4HeadConfig
from dspark.checkpoints.fp4_fp8 import Fp4Experts, fake_quantize_e4m3

Weights = Mapping[str, torch.Tensor]


def norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """RMSNorm in float32, scaled before it is rounded."""
    normed = F.rms_norm(x.float(), (x.shape[-1],), weight, eps)
    return normed.to(x.dtype)


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn the last dimensions of x [..., D], in pairs of neighbours, by angles [..., pairs]."""
    fixed, turning = x.split([x.shape[-1] - 2 * angles.shape[-1], 2 * angles.shape[-1]], dim=-1)
    even, odd = turning.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([fixed, turned.to(x.dtype)], dim=-1)


class StreamMixer:
    """One of a block's two hyper-connections: what goes into a sub-layer from the streams, and how
    they take up what comes out of it."""

    def __init__(self, config: DeepseekV4HeadConfig, weights: Weights, name: str) -> None:
        self._config = config
        self._fn, self._base = weights[f"{name}_fn"], weights[f"{name}_base"]
        self._scale = weights[f"{name}_scale"]

    def __call__(self, streams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """streams [..., S, H] -> the sub-layer's input [..., H], post [..., S], mix [..., S, S]."""
        config, count = self._config, self._config.num_streams
        sizes = [count, count, count * count]
        parts = _projected(streams, self._fn, config.rms_norm_eps).split(sizes, dim=-1)
        bases = self._base.split(sizes)
        pre, post, mix = (
            part * scale + base for part, scale, base in zip(parts, self._scale, bases, strict=True)
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


class WindowAttention:
    """Queries of a block over the window of its context and over the block itself."""

    def __init__(self, config: DeepseekV4HeadConfig, weights: Weights) -> None:
        self._config, self._weights = config, weights

    def keys(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """x [..., H] of context features or of the block -> [..., D], values as well.

        Rounded as the head was trained: all that does not turn as if it were kept in 8 bits.
        """
        config, weights = self._config, self._weights
        key = norm(
            F.linear(x, weights["attn.wkv.weight"]), weights["attn.kv_norm.weight"], self._eps
        )
        plain, turned = rotate(key, angles).split(
            [config.head_dim - config.rope_dim, config.rope_dim], dim=-1
        )
        return torch.cat([fake_quantize_e4m3(plain, QUANTISED_RUN), turned], dim=-1)

    def __call__(
        self, x: torch.Tensor, angles: torch.Tensor, window: torch.Tensor, is_there: torch.Tensor
    ) -> torch.Tensor:
        """x [R, K, H], angles [R, K, pairs], window [R, W, D], is_there [R, W] -> [R, K, H].

        Every row of a block sees the whole window and the whole block; a head's sink takes a part
        of its attention and gives nothing.
        """
        config, weights = self._config, self._weights
        low = norm(
            F.linear(x, weights["attn.wq_a.weight"]), weights["attn.q_norm.weight"], self._eps
        )
        query = F.linear(low, weights["attn.wq_b.weight"]).unflatten(-1, (config.num_heads, -1))
        query = rotate(norm(query, None, self._eps), angles.unsqueeze(-2))
        keys = torch.cat([window, self.keys(x, angles)], dim=1).float()
        scores = torch.einsum("rkhd,rjd->rkhj", query.float(), keys) * config.head_dim**-0.5
        hidden = F.pad(~is_there, (0, x.shape[1]))[:, None, None]
        scores = scores.masked_fill(hidden, float("-inf"))
        sinks = weights["attn.attn_sink"].unsqueeze(-1).expand(*scores.shape[:-1], 1)
        shares = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]
        attended = torch.einsum("rkhj,rjd->rkhd", shares, keys).to(x.dtype)
        attended = rotate(attended, -angles.unsqueeze(-2))
        return self._output(attended.flatten(-2))

    def _output(self, attended: torch.Tensor) -> torch.Tensor:
        """[R, K, heads * D], projected group by group, then all groups together."""
        groups = self._config.output_groups
        first = self._weights["attn.wo_a.weight"].unflatten(0, (groups, -1))
        low = torch.einsum("rkgi,goi->rkgo", attended.unflatten(-1, (groups, -1)), first)
        return F.linear(low.flatten(-2), self._weights["attn.wo_b.weight"])

    @property
    def _eps(self) -> float:
        return self._config.rms_norm_eps


class Experts:
    """The routed experts, in 4 bits until a row needs them, and the one that all rows share."""

    def __init__(
        self,
        config: DeepseekV4HeadConfig,
        weights: Weights,
        packed: Mapping[str, Fp4Experts],
    ) -> None:
        self._config, self._weights, self._packed = config, weights, packed

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, H] -> [N, H]."""
        shared = "ffn.shared_experts.{}.weight"
        out = self._feed(x, *(self._weights[shared.format(name)] for name in ("w1", "w2", "w3")))
        chosen, shares = self._route(x)
        for expert in chosen.unique().tolist():
            rows, places = (chosen == expert).nonzero(as_tuple=True)
            matrices = (self._packed[n].weight(expert, x.dtype) for n in ("w1", "w2", "w3"))
            part = self._feed(x[rows], *matrices) * shares[rows, places, None].to(x.dtype)
            out = out.index_add(0, rows, part)
        return out

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [N, H] -> experts [N, k] and their shares. The bias decides who, not how much."""
        logits = F.linear(x.float(), self._weights["ffn.gate.weight"])
        scores = F.softplus(logits).sqrt()
        ranked = scores + self._weights["ffn.gate.bias"]
        chosen = ranked.topk(self._config.experts_per_token, dim=-1).indices
        shares = scores.gather(-1, chosen)
        return chosen, self._config.routed_scale * shares / (shares.sum(-1, keepdim=True) + 1e-20)

    def _feed(
        self, x: torch.Tensor, gate: torch.Tensor, down: torch.Tensor, up: torch.Tensor
    ) -> torch.Tensor:
        limit = self._config.swiglu_limit
        gated = F.silu(F.linear(x, gate).clamp(max=limit))
        return F.linear(gated * F.linear(x, up).clamp(-limit, limit), down)
