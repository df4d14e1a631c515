"""A pass of DeepSeek-V4 as native programs: one call for all layers, or one up to each layer's
experts where these are not fed by the program."""

from collections.abc import Callable, Mapping, Sequence

import torch

from dspark.checkpoints.deepseek_v4_cache_layout import MAX_ROWS
from dspark.checkpoints.deepseek_v4_target import Expert, TargetWeights
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.deepseek_v4.cache import RequestCaches, Stretch
from dspark.models.deepseek_v4.layer_program import NOTHING, LayerProgram, stream_factors, units_op
from dspark.models.deepseek_v4.pass_memory import PassMemory
from dspark.models.deepseek_v4.rotation import RotationTable
from dspark.models.expert_store import LayerExperts
from dspark_kernels.cpu.deepseek_v4.step import STEP
from dspark_kernels.cpu.deepseek_v4.streams_text import STREAMS
from dspark_kernels.cpu.deepseek_v4.text import bits
from dspark_kernels.cpu.driver_text import MAX_OPS
from dspark_kernels.cpu.float_matrix import multiply_floats_op
from dspark_kernels.cpu.float_text import LANES
from dspark_kernels.cpu.runtime import Op, Program, Runtime

FEWEST_ROWS = 8  # for which there is memory
# x [N, H], expert ids [N, k], a layer's experts, the limit of SwiGLU -> [N, k, H]
FeedExperts = Callable[[torch.Tensor, torch.Tensor, Sequence[Expert], float], torch.Tensor]
Stage = Callable[[torch.Tensor], None]  # of a step


class NativePass:
    """`feed`: of routed experts, None if the program feeds them itself, on rows of 8 bits.
    `is_draft`: as of LayerProgram."""

    def __init__(
        self,
        config: DeepseekV4TargetConfig,
        weights: TargetWeights,
        tap_layers: Sequence[int],
        feed: FeedExperts | None,
        runtime: Runtime,
        is_draft: bool = False,
    ) -> None:
        self._is_draft = is_draft
        self._config, self._weights, self._taps = config, weights, tuple(tap_layers)
        self._feed, self._runtime = feed, runtime
        self._memory = PassMemory(config, FEWEST_ROWS, len(self._taps))
        self._stages: dict[bool, list[Stage]] = {}

    def run(
        self,
        embedded: torch.Tensor,
        token_ids: torch.Tensor,
        caches: RequestCaches,
        stretches: Sequence[Stretch],
        rotations: Sequence[RotationTable],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As Decoder.run; `embedded` [N, H], `rotations` without and with compression."""
        num_rows, longest = len(embedded), max(each.end for each in stretches)
        most = max(
            (
                longest // r
                for r, s in zip(self._config.ratios, self._config.selects, strict=True)
                if s
            ),
            default=0,
        )
        selects = most > self._config.index_top
        scores = torch.empty(num_rows if selects else 0, most)
        halves = caches.halves()
        found = (half.data_ptr() for half in halves)
        words = dict(zip(("half0", "half1"), found, strict=True))
        words["page_bytes"] = halves[0].stride(0) * halves[0].itemsize
        words |= {"scores": scores.data_ptr(), "scores_bytes": scores.stride(0) * scores.itemsize}
        for name, rotation in zip(("window", "compressed"), rotations, strict=True):
            words |= rotation_words(name, rotation, longest)
        rows = row_records(token_ids.tolist(), caches, stretches, self._config.window)
        x, _ = self.run_rows(embedded, rows, words, selects)
        return x, self._memory.taps[:num_rows].clone()

    def run_rows(
        self,
        embedded: torch.Tensor,
        records: Sequence[Sequence[int]],
        words: Mapping[str, int],
        selects: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """embedded [N, H], `records` as step.ROW, `words` those of step.STEP that operations need
        -> hidden states [N, H] after and before the final norm."""
        memory, num_rows = self._fit(len(embedded)), len(embedded)
        memory.streams[:num_rows] = embedded.unsqueeze(1)
        step, _kept = step_of(records, words)
        for stage in self._stages_of(selects):
            stage(step)
        return memory.x[:num_rows].clone(), memory.y[:num_rows].clone()

    def routes(self, num_rows: int) -> torch.Tensor:
        """Of the last run, [layers, N, k]: the experts of each row."""
        return self._memory.routes[:, :num_rows].clone()

    def _fit(self, num_rows: int) -> PassMemory:
        """Memory for so many rows; of a long prompt it does not stay."""
        room = self._memory.num_rows
        if num_rows > room or num_rows <= MAX_ROWS < room:
            wanted = max(FEWEST_ROWS, 1 << (num_rows - 1).bit_length())
            self._stages.clear()
            self._memory = PassMemory(self._config, wanted, len(self._taps))
        return self._memory

    def _stages_of(self, selects: bool) -> list[Stage]:
        if selects not in self._stages:
            self._stages[selects] = self._built(selects)
        return self._stages[selects]

    def _built(self, selects: bool) -> list[Stage]:
        config, memory = self._config, self._memory
        stages: list[Stage] = []
        ops: list[Op] = []
        for index, block in enumerate(self._weights.blocks):
            layer = LayerProgram(config, index, block, memory, selects, self._is_draft)
            ops += layer.until_route()
            if isinstance(block.experts, LayerExperts):  # begin to read what is chosen
                stages += self._programs(ops)
                stages.append(_reading_ahead(block.experts, memory.routes[index]))
                ops = []
            if self._feed is None:
                ops += layer.feed_experts()
            else:
                stages += self._programs(ops)
                fed = (block.experts, memory, memory.routes[index], config.swiglu_limit)
                stages.append(_feeding(self._feed, *fed))
                ops = []
            tap = None
            if index in self._taps:
                start = self._taps.index(index) * config.hidden_size
                tap = memory.taps[:, start : start + config.hidden_size]
            ops += layer.after_experts(tap)
        return stages + self._programs([*ops, *self._last()])

    def _programs(self, ops: Sequence[Op]) -> list[Stage]:
        parts = [ops[start : start + MAX_OPS] for start in range(0, len(ops), MAX_OPS)]
        return [Program(self._runtime, part) for part in parts]

    def _last(self) -> list[Op]:
        """The streams to one hidden state, normed."""
        config, memory, tensors = self._config, self._memory, self._weights.tensors
        scales = tensors["hc_head_scale"].expand(STREAMS)
        factors = stream_factors(scales, tensors["hc_head_base"])
        words = (memory.streams, memory.projected, factors, tensors["norm.weight"])
        outs = (memory.y, memory.x)  # before and after the norm
        sizes = (config.hidden_size // LANES, bits(config.stream_eps), bits(config.rms_norm_eps))
        fn = self._weights.matrices["hc_head_fn"]
        return [
            units_op(config, memory),
            multiply_floats_op(memory.units, fn, memory.projected),
            Op("close_streams", 0, 1, (*words, *outs, *sizes)),
        ]


def _reading_ahead(experts: LayerExperts, route: torch.Tensor) -> Stage:
    return lambda step: experts.read_ahead(route[: int(step[0])])


def _feeding(
    feed: FeedExperts,
    experts: Sequence[Expert],
    memory: PassMemory,
    route: torch.Tensor,
    limit: float,
) -> Stage:
    def run(step: torch.Tensor) -> None:
        rows = int(step[0])
        said = feed(memory.x[:rows], route[:rows], experts, limit).flatten(0, 1)
        memory.said[: len(said)], memory.places[: len(said)] = said, memory.own[: len(said)]

    return run


def step_of(
    records: Sequence[Sequence[int]], words: Mapping[str, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A step of these rows, and the table that it points to."""
    rows = torch.tensor(records)
    found = {"rows": len(records), "table": rows.data_ptr(), **words}
    return torch.tensor([found.get(name, NOTHING) for name in STEP]), rows


def rotation_words(name: str, rotation: RotationTable, longest: int) -> dict[str, int]:
    cos, sin = rotation.tables(longest)
    return {f"{name}_cos": cos.data_ptr(), f"{name}_sin": sin.data_ptr()}


def row_records(
    tokens: Sequence[int], caches: RequestCaches, stretches: Sequence[Stretch], window: int
) -> list[list[int]]:
    """As step.ROW."""
    records = []
    for slot, start, end, first in stretches:
        rings = caches.rings(slot).memory.data_ptr()
        pages = caches.pool.tables[slot.index].data_ptr()
        for position in range(start, end):
            token = tokens[first + position - start]
            seen = (max(0, position + 1 - window), position + 1)
            records.append([position, rings, pages, token, first, start, end, *seen])
    return records
