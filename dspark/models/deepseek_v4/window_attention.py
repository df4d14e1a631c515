"""DeepSeek-V4's attention of few queries over one shared key that is also the value.

Norms and softmax are in float32, as in the target's own forward.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from dspark.checkpoints.deepseek_v4_config import QUANTISED_RUN, DeepseekV4HeadConfig
from dspark.models.deepseek_v4.norm_rotate import norm, rotate
from dspark_kernels.cpu.deepseek_v4.rows_text import SMALLEST_AMAX
from dspark_kernels.quantized_weight import FP8_MAX

Weights = Mapping[str, torch.Tensor]


class WindowAttention:
    """Queries of a block over the window of its context and the block itself."""

    def __init__(self, config: DeepseekV4HeadConfig, weights: Weights) -> None:
        self._config, self._weights = config, weights

    def keys(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """x [..., H] of context features or of the block -> [..., D], values as well.

        Rounded as in training: the dimensions without RoPE as if stored in 8 bits.
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

        Every row of a block sees the whole window and the whole block; a head's sink absorbs a part
        of its attention.
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


def fake_quantize_e4m3(x: torch.Tensor, run: int) -> torch.Tensor:
    """x [..., D] rounded to e4m3 with a power-of-two scale for every `run` of D."""
    runs = x.float().unflatten(-1, (-1, run))
    largest = runs.abs().amax(-1, keepdim=True).clamp_min(SMALLEST_AMAX)
    mantissa, exponent = torch.frexp(largest / FP8_MAX)
    exponent = exponent - (mantissa == 0.5).int()  # frexp gives 2^k as 0.5 · 2^(k+1)
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    stored = (runs / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    out: torch.Tensor = (stored.float() * scale).flatten(-2).to(x.dtype)
    return out
