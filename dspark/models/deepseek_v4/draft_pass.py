"""The stages of a DeepSeek-V4 DSpark head as native programs: blocks of the target's own kind
without compression, over rings of their own."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dspark.checkpoints.deepseek_v4 import MappedHead
from dspark.checkpoints.deepseek_v4_cache_layout import MAX_ROWS, request_values, window_cells
from dspark.checkpoints.deepseek_v4_config import (
    QUANTISED_RUN,
    SHARED_NUMBERS,
    SHARED_SIZES,
    DeepseekV4HeadConfig,
)
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.deepseek_v4.layer_program import LayerProgram, is_supported, norm_op
from dspark.models.deepseek_v4.native_pass import (
    FeedExperts,
    NativePass,
    rotation_words,
    step_of,
)
from dspark.models.deepseek_v4.pass_memory import PassMemory
from dspark.models.deepseek_v4.rotation import RotationTable
from dspark_kernels.cpu.deepseek_v4.rows_text import RUN
from dspark_kernels.cpu.deepseek_v4.text import bits
from dspark_kernels.cpu.float_matrix import multiply_floats_op
from dspark_kernels.cpu.float_text import LANES
from dspark_kernels.cpu.runtime import Program, Runtime


class Context(NamedTuple):
    """Of one request: its rings, the first position in them, and how many there are."""

    rings: torch.Tensor
    first: int
    length: int


class DraftPass:
    """`feed`: as of NativePass."""

    def __init__(
        self,
        head: DeepseekV4HeadConfig,
        weights: MappedHead,
        feed: FeedExperts | None,
        runtime: Runtime,
    ) -> None:
        self._head, self._config = head, as_target(head)
        self._rotation = RotationTable(self._config.window_rope, head.rope_dim)
        self._stages = NativePass(self._config, weights.stages, (), feed, runtime, is_draft=True)
        self.num_values = request_values(self._config)  # of a request's rings
        self.cells = window_cells(self._config)
        self._build_context(weights, runtime)

    @torch.inference_mode(False)  # passes write to it in any mode
    def _build_context(self, weights: MappedHead, runtime: Runtime) -> None:
        config, hidden = self._config, self._head.hidden_size
        self._taps = torch.empty(MAX_ROWS, self._head.tap_width)
        features = torch.empty(MAX_ROWS, hidden)
        keys = torch.empty(MAX_ROWS, config.head_dim)
        eps = bits(config.rms_norm_eps)
        ops = [
            multiply_floats_op(self._taps, weights.main_proj, features),
            norm_op(features, features, weights.main_norm, eps, 1),
        ]
        unused = PassMemory(config, 1, 0)
        for index, block in enumerate(weights.stages.blocks):
            stage = LayerProgram(config, index, block, unused, selects=False, is_draft=True)
            ops += stage.keep_keys(features, keys)
        self._context = Program(runtime, ops)

    def take_in(self, context: Context, taps: torch.Tensor) -> None:
        """Taps [n, T * H] of the positions from context.length on, at most as many as there are
        cells."""
        for at in range(0, len(taps), MAX_ROWS):
            rows = taps[at : at + MAX_ROWS]
            self._taps[: len(rows)] = rows
            start = context.length + at
            end = start + len(rows)
            words = rotation_words("window", self._rotation, end)
            step, _kept = step_of(_records(context.rings, 0, start, end, start), words)
            self._context(step)

    def run(
        self, embedded: torch.Tensor, contexts: Sequence[Context]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """embedded [R * K, H] of blocks behind these contexts -> as NativePass.run_rows. Every row
        of a block sees the window before it and the whole block."""
        size, records = self._head.block_size, []
        for number, (rings, first, length) in enumerate(contexts):
            oldest = min(length, max(first, length - self._head.window))
            records += _records(rings, number * size, length, length + size, oldest)
        longest = max(each.length for each in contexts) + size
        words = rotation_words("window", self._rotation, longest)
        return self._stages.run_rows(embedded, records, words)

    def routes(self, num_rows: int) -> torch.Tensor:
        """As NativePass.routes."""
        return self._stages.routes(num_rows)


def _records(
    rings: torch.Tensor, first: int, start: int, end: int, oldest: int
) -> list[tuple[int, ...]]:
    """As step.ROW, of rows that see each other."""
    address = rings.data_ptr()
    return [
        (position, address, 0, 0, first, start, end, oldest, end) for position in range(start, end)
    ]


def runs_stages(head: DeepseekV4HeadConfig) -> bool:
    """Whether sizes are whole chunks of the operations."""
    return QUANTISED_RUN == RUN and not head.markov_rank % LANES and is_supported(as_target(head))


def as_target(head: DeepseekV4HeadConfig) -> DeepseekV4TargetConfig:
    """A target whose layers are the stages. A block sees all `window` rows before it, a target's
    row one less."""
    shared = {name: getattr(head, name) for name in (*SHARED_SIZES, *SHARED_NUMBERS)}
    shared |= {"window": head.window + 1}
    return DeepseekV4TargetConfig(
        **shared,
        num_layers=head.num_stages,
        num_hash_layers=0,
        index_heads=0,
        index_dim=0,
        index_top=0,
        ratios=(0,) * head.num_stages,
        selects=(False,) * head.num_stages,
        scale_block=head.scale_block,
        rms_norm_eps=head.rms_norm_eps,
        window_rope={"rope_theta": head.rope_theta},
        compressed_rope={"rope_theta": head.rope_theta},
    )
