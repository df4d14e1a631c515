"""Layers of heads, as modules for training and decoding.

Parameter names are those of DeepSpec's layout.
"""

from collections.abc import Callable

import torch
from torch import nn

from dspark.checkpoints.head_config import HeadConfig
from dspark.checkpoints.yarn import Yarn
from dspark_kernels import RotaryTable, apply_rope, rms_norm
from dspark_kernels.rope_frequencies import rope_frequencies


class Norm(nn.Module):
    """RMSNorm with a learned scale."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., D] -> [..., D]."""
        return rms_norm(x, self.weight, self.eps)


class DraftAttention(nn.Module):
    """Queries from the block; keys and values from the context features and from the block."""

    def __init__(self, config: HeadConfig, input_width: int | None = None) -> None:
        """`input_width` of the rows that are projected is the hidden size unless given."""
        super().__init__()
        hidden, bias = config.hidden_size, config.attention_bias
        width = input_width or hidden
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.scale = config.attention_scale
        self.q_proj = nn.Linear(width, config.num_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.num_kv_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.num_kv_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, hidden, bias=bias)
        self.q_norm = Norm(config.head_dim, config.rms_norm_eps)
        self.k_norm = Norm(config.head_dim, config.rms_norm_eps)

    def queries(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x [..., N, H] -> [..., N, heads, D]."""
        query = self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim))
        return apply_rope(self.q_norm(query), cos, sin)

    def keys_values(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x [..., N, H] (block rows or context features) -> two [..., N, kv_heads, D]."""
        key = self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        value = self.v_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        return apply_rope(self.k_norm(key), cos, sin), value


class Gemma4Attention(DraftAttention):
    """A value is its own key before norm and rope, under a norm without a scale."""

    one: torch.Tensor

    def __init__(self, config: HeadConfig, input_width: int | None = None) -> None:
        super().__init__(config, input_width)
        del self.v_proj
        self.register_buffer("one", torch.ones(config.head_dim, device="cpu"), persistent=False)

    def keys_values(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As DraftAttention.keys_values."""
        shared = self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        value = rms_norm(shared, self.one.to(shared), self.k_norm.eps)
        return apply_rope(self.k_norm(shared), cos, sin), value


class DraftMLP(nn.Module):
    """SwiGLU, or with Gemma's gate."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.is_gelu = config.family == "gemma4"
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., H] -> [..., H]."""
        gate = self.gate_proj(x)
        gelu, silu = nn.functional.gelu, nn.functional.silu
        gate = gelu(gate, approximate="tanh") if self.is_gelu else silu(gate)
        out: torch.Tensor = self.down_proj(gate * self.up_proj(x))
        return out


class DraftLayer(nn.Module):
    """Pre-norm attention and MLP. The caller attends: training keeps keys differently."""

    hidden_norm: Norm  # of an Eagle3 head's alone

    def __init__(self, config: HeadConfig, input_width: int | None = None) -> None:
        super().__init__()
        attention = Gemma4Attention if config.family == "gemma4" else DraftAttention
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = attention(config, input_width)
        self.mlp = DraftMLP(config)

    def forward(
        self, hidden: torch.Tensor, attend: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """hidden [N, H] -> the layer's output [N, H]; `attend` turns the normed rows [N, H] into
        [N, heads * D]."""
        return self.finish(hidden, attend(self.input_layernorm(hidden)))

    def finish(self, residual: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """residual [..., H], attended [..., heads * D] -> the layer's output [..., H]."""
        hidden = residual + self.self_attn.o_proj(attended)
        out: torch.Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class Gemma4Layer(DraftLayer):
    """Also norms after attention and MLP, and a scale of the output."""

    def __init__(self, config: HeadConfig, input_width: int | None = None) -> None:
        super().__init__(config, input_width)
        self.pre_feedforward_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_feedforward_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.register_buffer("layer_scalar", torch.ones(1))

    def finish(self, residual: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """As DraftLayer.finish."""
        hidden = residual + self.post_attention_layernorm(self.self_attn.o_proj(attended))
        inner = self.mlp(self.pre_feedforward_layernorm(hidden))
        out: torch.Tensor = (hidden + self.post_feedforward_layernorm(inner)) * self.layer_scalar
        return out


def draft_layer(config: HeadConfig, input_width: int | None = None) -> DraftLayer:
    """The layer of the config's family. `input_width` of attention: the hidden size if None."""
    layer = Gemma4Layer if config.family == "gemma4" else DraftLayer
    return layer(config, input_width)


def full_rotary(config: HeadConfig, like: torch.Tensor) -> RotaryTable:
    """Rotates every dimension of a head, or the first part; on the device and in the dtype of
    `like`."""
    if config.yarn is not None:
        return _yarn_rotary(config, config.yarn, like)
    exponent = torch.arange(0, config.head_dim, 2, device=like.device).float()
    inv_freq = config.rope_theta ** (-exponent / config.head_dim)
    inv_freq[int(config.rotated_fraction * len(inv_freq)) :] = 0.0
    return RotaryTable(inv_freq, 1.0, like.dtype)


def _yarn_rotary(config: HeadConfig, yarn: Yarn, like: torch.Tensor) -> RotaryTable:
    rope = yarn.to_json() | {"rope_theta": config.rope_theta}
    inv_freq, scaling = rope_frequencies(rope, config.head_dim)
    return RotaryTable(inv_freq.to(like.device), scaling, like.dtype)
