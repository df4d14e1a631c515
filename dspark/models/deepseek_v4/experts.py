"""DeepSeek-V4's routed experts. Routing is in float32, as in the target's own forward."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from dspark.checkpoints.deepseek_v4_config import DeepseekV4HeadConfig
from dspark_kernels import QuantizedWeight, skinny_linear
from dspark_kernels.cpu.file_weight import FileWeight
from dspark_kernels.cpu.float_matrix import multiply_floats

Weight = torch.Tensor | QuantizedWeight | FileWeight
Weights = Mapping[str, torch.Tensor]


class Experts:
    """The routed experts, in 4 bits until a row needs them, and the one that all rows share."""

    def __init__(
        self,
        config: DeepseekV4HeadConfig,
        weights: Weights,
        routed: Mapping[str, Sequence[QuantizedWeight | FileWeight]],
    ) -> None:
        self._config, self._weights, self._routed = config, weights, routed

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, H] -> [N, H]."""
        shared = "ffn.shared_experts.{}.weight"
        out = self._feed(x, *(self._weights[shared.format(name)] for name in ("w1", "w2", "w3")))
        expert_ids, shares = self._route(x)
        for expert in expert_ids.unique().tolist():
            rows, places = (expert_ids == expert).nonzero(as_tuple=True)
            matrices = (self._routed[name][expert] for name in ("w1", "w2", "w3"))
            part = self._feed(x[rows], *matrices) * shares[rows, places, None].to(x.dtype)
            out = out.index_add(0, rows, part)
        return out

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [N, H] -> experts [N, k] and their weights. The bias affects the choice, not the
        weights."""
        logits = F.linear(x.float(), self._weights["ffn.gate.weight"])
        scores = F.softplus(logits).sqrt()
        ranked = scores + self._weights["ffn.gate.bias"]
        expert_ids = ranked.topk(self._config.experts_per_token, dim=-1).indices
        shares = scores.gather(-1, expert_ids)
        return expert_ids, self._config.routed_scale * shares / (
            shares.sum(-1, keepdim=True) + 1e-20
        )

    def _feed(self, x: torch.Tensor, gate: Weight, down: Weight, up: Weight) -> torch.Tensor:
        """x [N, H] -> [N, H], gate and value cut off at the limit."""
        limit = self._config.swiglu_limit
        gated = F.silu(_times(x, gate).clamp(max=limit))
        return _times(gated * _times(x, up).clamp(-limit, limit), down)


def _times(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """x [N, K], weight [M, K] -> [N, M]."""
    if isinstance(weight, FileWeight):
        return multiply_floats(x, weight)
    return skinny_linear(x, weight)
