"""Taps of a target to the keys and values of a drafter's layers, a pass of rows as one call.

A context feature is RMSNorm(W_c · taps); each layer projects it with weights of its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dspark_kernels.cpu.decoder_pass import MAX_ROWS, Projection
from dspark_kernels.cpu.matrix import multiply_op
from dspark_kernels.cpu.norm_round import norm_round_op, norm_round_reference
from dspark_kernels.cpu.pool import Job
from dspark_kernels.cpu.rope_write import Heads, rope_write_op, rope_write_reference
from dspark_kernels.cpu.rounded import GROUP, empty_rounded, round_rows_reference
from dspark_kernels.cpu.runtime import Op, Program, Runtime
from dspark_kernels.cpu.step_words import Pages, PassRows, Place, StepTable
from dspark_kernels.cpu.stored_weight import StoredWeight

TAPS_WORD = 0  # of the first operation's words


class ContextLayer(NamedTuple):
    """`heads` without queries."""

    keys_values: Projection
    heads: Heads


class Context(NamedTuple):
    """`joined` [H, T · H] of all taps, `norm` [H]."""

    joined: StoredWeight
    norm: torch.Tensor
    eps: float
    layers: Sequence[ContextLayer]


class ContextPass:
    """Buffers and the program of a pass of up to 64 rows, which reads taps where they are."""

    def __init__(self, runtime: Runtime, context: Context) -> None:
        width, hidden = context.joined.width, context.joined.num_outputs
        widest = max(layer.keys_values.num_columns for layer in context.layers)
        self._runtime, self._step = runtime, StepTable(MAX_ROWS)
        self._taps, self._joined = torch.zeros(1, width), torch.zeros(MAX_ROWS, hidden)
        rounded = empty_rounded(MAX_ROWS, width).data
        features, both = empty_rounded(MAX_ROWS, hidden).data, torch.zeros(MAX_ROWS, widest)
        no_queries = torch.zeros(1)
        ops = [
            Op("round_rows", 0, 1, (self._taps, rounded, width // GROUP)),
            multiply_op(context.joined, None, rounded, self._joined),
            norm_round_op(self._joined, None, context.norm, context.eps, features),
        ]
        for index, layer in enumerate(context.layers):
            for weight, _, start in layer.keys_values.parts():
                ops += [multiply_op(weight, None, features, both[:, start:])]
            ops += [rope_write_op(both, no_queries, index, layer.heads)]
        self._program = Program(runtime, ops)

    def __call__(
        self,
        taps: torch.Tensor,
        cache: Pages,
        place: Place,
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        """taps float32 [N, T · H], N at most 64; writes into `cache`, the rest as in step_words."""
        if len(taps) > MAX_ROWS:
            raise ValueError(f"{len(taps)} rows in a pass of at most {MAX_ROWS}")
        rows = PassRows([], *(each.tolist() for each in place))
        self._runtime.run_jobs(self.job(taps.contiguous(), cache, rows, rotary))

    def job(
        self,
        taps: torch.Tensor,
        cache: Pages,
        rows: PassRows,
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> Job:
        """As __call__, to be run before the next one is asked for; taps [at least N, T · H]."""
        self._step.fill(rows, rotary, cache)
        if taps.data_ptr() != self._taps.data_ptr():
            self._program.point(0, TAPS_WORD, taps)
        self._taps = taps
        return self._program.job(self._step.address)


def context_reference(
    context: Context,
    taps: torch.Tensor,
    cache: Pages,
    place: Place,
    rotary: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """What ContextPass writes."""
    joined = Projection((context.joined,)).reference(round_rows_reference(taps))
    features, _, _ = norm_round_reference(joined, None, context.norm, context.eps)
    for index, layer in enumerate(context.layers):
        both = layer.keys_values.reference(features)
        rope_write_reference(both, cache, index, place, rotary, layer.heads)
