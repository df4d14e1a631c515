"""The indexer of DeepSeek-V4's CSA layers: which compressed entries a row attends to."""

import torch

from dspark.checkpoints.deepseek_v4_target import Block
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.deepseek_v4.rotation import Turn, rotated
from dspark_kernels.cpu.float_matrix import multiply_floats


class Indexer:
    def __init__(self, config: DeepseekV4TargetConfig, block: Block) -> None:
        self._config = config
        self._queries = block.matrices["attn.indexer.wq_b.weight"]
        self._weights = block.matrices["attn.indexer.weights_proj.weight"]

    def queries(
        self, x: torch.Tensor, low: torch.Tensor, turn: Turn
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x [N, H], low [N, query rank] -> queries [N, heads, D] and the weights of heads."""
        heads = self._config.index_heads
        query = multiply_floats(low, self._queries).unflatten(1, (heads, -1))
        return rotated(query, turn), multiply_floats(x, self._weights) * heads**-0.5

    def best(self, query: torch.Tensor, weights: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Of one row: query [heads, D], weights [heads], keys [n, D] -> the entries with the
        highest scores, in ascending order; of equal ones the first."""
        scores = (query @ keys.t()).relu_() * self._config.index_dim**-0.5
        total = (scores * weights.unsqueeze(1)).sum(0)
        least = total.topk(self._config.index_top).values[-1]
        above = total > least
        num_equal = self._config.index_top - int(above.sum())
        above[(total == least).nonzero()[:num_equal, 0]] = True
        chosen: torch.Tensor = above.nonzero()[:, 0]
        return chosen
