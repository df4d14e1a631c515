"""Which experts a row of DeepSeek-V4 takes, and with which weights."""

import torch
import torch.nn.functional as F

from dspark.checkpoints.deepseek_v4_target import HASH_TABLE, Block
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.deepseek_v4.row_wise import by_rows, ordered_sum
from dspark_kernels.cpu.float_matrix import multiply_floats

NEVER_ZERO = 1e-20


class Router:
    def __init__(self, config: DeepseekV4TargetConfig, block: Block) -> None:
        self._config, self._gate = config, block.matrices["ffn.gate.weight"]
        self._table = block.tensors.get(HASH_TABLE)
        self._bias = block.tensors.get("ffn.gate.bias")

    def __call__(
        self, x: torch.Tensor, token_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x [N, H] -> experts [N, k] and their weights [N, k]. A bias affects the choice, not the
        weights; in the first layers the token alone chooses."""
        scores = by_rows(_score, multiply_floats(x, self._gate))
        if self._table is not None:
            experts = self._table[token_ids].long()
        else:
            assert self._bias is not None
            experts = (scores + self._bias).topk(self._config.experts_per_token, dim=-1).indices
        shares = scores.gather(1, experts)
        total = ordered_sum(shares) + NEVER_ZERO
        return experts, shares / total * self._config.routed_scale


def _score(logits: torch.Tensor) -> torch.Tensor:
    return F.softplus(logits).sqrt()
