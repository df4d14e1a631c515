"""A pass of gpt-oss or Qwen3-MoE as one native program of all layers, or one up to each layer's
experts where these are read ahead."""

from collections.abc import Callable, Sequence

import torch

from dspark.checkpoints.deepseek_v4_cache_layout import MAX_ROWS
from dspark.checkpoints.deepseek_v4_target import TargetWeights
from dspark.checkpoints.moe_config import MoeConfig
from dspark.checkpoints.moe_target import FINAL_NORM
from dspark.models.deepseek_v4.layer_program import norm_op
from dspark.models.expert_store import LayerExperts
from dspark.models.moe.layer_program import LayerProgram
from dspark.models.moe.pass_memory import PassMemory
from dspark_kernels.cpu.deepseek_v4.text import bits
from dspark_kernels.cpu.driver_text import MAX_OPS
from dspark_kernels.cpu.runtime import Op, Program, Runtime
from dspark_kernels.cpu.step_words import Pages, Place, step_words

FEWEST_ROWS = 8  # for which there is memory
Stage = Callable[[torch.Tensor], None]  # of a step


class NativePass:
    def __init__(
        self,
        config: MoeConfig,
        weights: TargetWeights,
        tap_layers: Sequence[int],
        runtime: Runtime,
        *,
        rounds: bool,
    ) -> None:
        self._config, self._weights, self._taps = config, weights, tuple(tap_layers)
        self._runtime, self._rounds = runtime, rounds
        self._memory = self._memory_for(FEWEST_ROWS)
        self._stages: list[Stage] = []

    def run(
        self,
        embedded: torch.Tensor,
        pages: Pages,
        place: Place,
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As moe_reference's run."""
        num_rows = len(embedded)
        room = self._memory.num_rows
        if num_rows > room or num_rows <= MAX_ROWS < room:  # of a long prompt it does not stay
            self._stages = []
            wanted = max(FEWEST_ROWS, 1 << (num_rows - 1).bit_length())
            self._memory = self._memory_for(wanted)
        memory = self._memory
        memory.total[:num_rows] = embedded
        step = step_words(place, rotary, pages)
        self._stages = self._stages or self._built()
        for stage in self._stages:
            stage(step)
        found = (memory.x, memory.taps)
        hidden, taps = (each[:num_rows].clone() for each in found)
        return hidden, taps, memory.routes[:, :num_rows].clone()

    def _memory_for(self, num_rows: int) -> PassMemory:
        return PassMemory(self._config, num_rows, len(self._taps), rounds=self._rounds)

    def _built(self) -> list[Stage]:
        memory, hidden = self._memory, self._config.hidden_size
        stages: list[Stage] = []
        ops: list[Op] = []
        for index, block in enumerate(self._weights.blocks):
            layer = LayerProgram(self._config, index, block, memory, rounds=self._rounds)
            ops += layer.until_route()
            if isinstance(block.experts, LayerExperts):  # begin to read what is chosen
                stages += self._programs(ops)
                stages.append(_reading_ahead(block.experts, memory.routes[index]))
                ops = []
            tap = None
            if index in self._taps:
                start = self._taps.index(index) * hidden
                tap = memory.taps[:, start : start + hidden]
            ops += layer.feed_experts(tap)
        norm = self._weights.tensors[FINAL_NORM]
        last = norm_op(memory.total, memory.x, norm, bits(self._config.rms_norm_eps), 1)
        return stages + self._programs([*ops, last])

    def _programs(self, ops: Sequence[Op]) -> list[Stage]:
        parts = [ops[start : start + MAX_OPS] for start in range(0, len(ops), MAX_OPS)]
        return [Program(self._runtime, part) for part in parts]


def _reading_ahead(experts: LayerExperts, route: torch.Tensor) -> Stage:
    return lambda step: experts.read_ahead(route[: int(step[0])])
