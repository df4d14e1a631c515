"""The layers of a Llama-shaped decoder over stored weights, a pass of rows as one call.

Rows of any requests come in as tokens and go out as the final norm's hidden states; in between
Python does nothing. The reference is the same operations in torch, one after the other.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch

from dspark_kernels.cpu.argmax import LOGITS_WORD, Largest, argmax_op
from dspark_kernels.cpu.attend_round import (
    attend_round_op,
    attend_round_reference,
    attend_scratch,
)
from dspark_kernels.cpu.embed import embed_op, embed_reference
from dspark_kernels.cpu.matrix import OUT_WORD, multiply_op, multiply_reference, padded_bias
from dspark_kernels.cpu.norm_round import norm_round_op, norm_round_reference
from dspark_kernels.cpu.pool import Job
from dspark_kernels.cpu.rope_write import Heads, rope_write_op, rope_write_reference
from dspark_kernels.cpu.rounded import RoundedRows, empty_rounded
from dspark_kernels.cpu.runtime import Op, Program, Runtime
from dspark_kernels.cpu.step_words import Pages, PassRows, Place, StepTable
from dspark_kernels.cpu.stored_weight import LANES, StoredWeight
from dspark_kernels.cpu.swiglu_round import swiglu_round_op, swiglu_round_reference

MAX_ROWS = 64


class Projection(NamedTuple):
    """Weights of one input side by side: out = x [w0, w1, ...]^T + bias. All but the last of a
    multiple of 16 outputs; those of different formats stay apart."""

    weights: tuple[StoredWeight, ...]
    bias: torch.Tensor | None = None

    @property
    def num_outputs(self) -> int:
        return sum(weight.num_outputs for weight in self.weights)

    @property
    def num_columns(self) -> int:
        """Of a buffer that takes whole blocks of outputs."""
        return -(-self.num_outputs // LANES) * LANES

    def parts(self) -> list[tuple[StoredWeight, torch.Tensor | None, int]]:
        """Each weight with its bias and its first column."""
        parts, start = [], 0
        for weight in self.weights:
            end = start + weight.num_outputs
            parts.append((weight, None if self.bias is None else self.bias[start:end], start))
            start = end
        return parts

    def reference(self, rows: RoundedRows) -> torch.Tensor:
        return torch.cat([multiply_reference(rows, w, bias) for w, bias, _ in self.parts()], 1)


class DecoderLayer(NamedTuple):
    input_norm: torch.Tensor
    qkv: Projection
    heads: Heads
    output: Projection
    mlp_norm: torch.Tensor
    gate_up: Projection
    down: Projection


class Decoder(NamedTuple):
    """`taps` are the layers whose output is returned, -1 for the embedding."""

    embedding: StoredWeight
    layers: Sequence[DecoderLayer]
    final_norm: torch.Tensor
    eps: float
    taps: tuple[int, ...] = ()

    def norms(self) -> list[torch.Tensor]:
        """Of each layer's input, then the final one."""
        return [*(layer.input_norm for layer in self.layers), self.final_norm]


class DecoderPass:
    """Buffers and the program of a pass of up to 64 rows, whose operations are `ops`. With an
    output head `head` [V, H] a pass can go on to logits, of `num_columns` columns a row at least
    V in whole blocks, and with `finds_largest` to the largest of each row.

    Results of a pass lie in `hidden` [N, H] (after the final norm) and `taps` [N, T · H], until
    the next one.
    """

    def __init__(
        self,
        runtime: Runtime,
        decoder: Decoder,
        head: StoredWeight | None = None,
        num_columns: int = 0,
        *,
        finds_largest: bool = False,
    ) -> None:
        self._runtime, self._step = runtime, StepTable(MAX_ROWS)
        self._decoder, self._width = decoder, decoder.final_norm.shape[0]
        first = decoder.layers[0]
        widest = max(layer.gate_up.num_columns for layer in decoder.layers)
        heads = first.heads
        self._total = torch.zeros(MAX_ROWS, self._width)
        self.hidden = torch.zeros(MAX_ROWS, self._width)
        self.taps = torch.zeros(MAX_ROWS, self._width * len(decoder.taps))
        self._update = torch.zeros(MAX_ROWS, first.output.num_columns)
        self._qkv = torch.zeros(MAX_ROWS, first.qkv.num_columns)
        self._queries = torch.zeros(MAX_ROWS, heads.num_heads, heads.head_dim)
        self._scratch = attend_scratch(MAX_ROWS, heads)
        # rows must not lie whole pages apart: processors mistake their stores for each other's
        self._gate_up = torch.zeros(MAX_ROWS, widest + LANES)
        self._rounded = empty_rounded(MAX_ROWS, self._width).data
        self._attended = empty_rounded(MAX_ROWS, heads.num_heads * heads.head_dim).data
        self._gated = empty_rounded(MAX_ROWS, first.down.weights[0].width).data
        self._largest = torch.zeros(2, MAX_ROWS, dtype=torch.int64)
        # the same memory, for Python: few numbers are the quicker read so
        numbers = ctypes.c_int64 * self._largest.numel()
        self._largest_memory = numbers.from_address(self._largest.data_ptr())
        self.ops = self._ops()
        self._program = self._to_logits = Program(runtime, self.ops)
        if head is not None:
            like = self._logits = torch.empty(1, num_columns)
            ops = [*self.ops, multiply_op(head, None, self._rounded, like)]
            if finds_largest:
                ops.append(argmax_op(like[:, : head.num_outputs], Largest(*self._largest)))
            self._to_logits = Program(runtime, ops)
            self._finds_largest = finds_largest

    def __call__(
        self,
        token_ids: torch.Tensor,
        cache: Pages,
        place: Place,
        rotary: tuple[torch.Tensor, torch.Tensor],
        logits: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """token_ids int64 [N], N at most 64; `logits` [N, num_columns] are filled if there is a
        head; the rest as in step_words.

        -> hidden states [N, H] after the final norm, taps [N, T · H].
        """
        num_rows = len(token_ids)
        rows = PassRows(token_ids.tolist(), *(each.tolist() for each in place))
        self._runtime.run_jobs(self.job(rows, cache, rotary, logits))
        return self.hidden[:num_rows].clone(), self.taps[:num_rows].clone()

    def job(
        self,
        rows: PassRows,
        cache: Pages,
        rotary: tuple[torch.Tensor, torch.Tensor],
        logits: torch.Tensor | None = None,
    ) -> Job:
        """As __call__, to be run before the next one is asked for."""
        if len(rows.tokens) > MAX_ROWS:
            raise ValueError(f"{len(rows.tokens)} rows in a pass of at most {MAX_ROWS}")
        self._step.fill(rows, rotary, cache, self._decoder.embedding.num_outputs)
        if logits is None:
            return self._program.job(self._step.address)
        if logits.data_ptr() != self._logits.data_ptr():
            self._point(logits)
        return self._to_logits.job(self._step.address)

    def largest(self, num_rows: int) -> tuple[list[int], list[int]]:
        """Of the last pass, as Largest."""
        memory = self._largest_memory
        return memory[:num_rows], memory[MAX_ROWS : MAX_ROWS + num_rows]

    def _point(self, logits: torch.Tensor) -> None:
        self._logits = logits
        self._to_logits.point(len(self.ops), OUT_WORD, logits)
        if self._finds_largest:
            self._to_logits.point(len(self.ops) + 1, LOGITS_WORD, logits)

    def _tap(self, layer: int) -> torch.Tensor | None:
        taps = self._decoder.taps
        if layer not in taps:
            return None
        start = taps.index(layer) * self._width
        return self.taps[:, start : start + self._width]

    def _ops(self) -> list[Op]:
        decoder = self._decoder
        ops = [embed_op(decoder.embedding, self._total)]
        norms, update = decoder.norms(), self._update[:, : self._width]
        for index, layer in enumerate(decoder.layers):
            before = None if index == 0 else update
            ops += [self._norm(norms[index], before, self._tap(index - 1))]
            ops += _products(layer.qkv, self._rounded, self._qkv)
            ops += [rope_write_op(self._qkv, self._queries, index, layer.heads)]
            tables = (self._queries, self._attended)
            ops += [attend_round_op(*tables, index, layer.heads, self._scratch)]
            ops += _products(layer.output, self._attended, self._update)
            ops += [self._norm(layer.mlp_norm, update, None)]
            ops += _products(layer.gate_up, self._rounded, self._gate_up)
            gate_up = self._gate_up[:, : layer.gate_up.num_outputs]
            ops += [swiglu_round_op(gate_up, self._gated)]
            ops += _products(layer.down, self._gated, self._update)
        last = len(decoder.layers) - 1
        return [*ops, self._norm(norms[-1], update, self._tap(last), self.hidden)]

    def _norm(
        self,
        weight: torch.Tensor,
        update: torch.Tensor | None,
        tap: torch.Tensor | None,
        normed: torch.Tensor | None = None,
    ) -> Op:
        eps = self._decoder.eps
        return norm_round_op(
            self._total, update, weight, eps, self._rounded, normed=normed, tap=tap
        )


def _products(projection: Projection, rows: torch.Tensor, out: torch.Tensor) -> list[Op]:
    return [
        multiply_op(weight, padded_bias(weight, bias), rows, out[:, start:])
        for weight, bias, start in projection.parts()
    ]


def decoder_reference(
    decoder: Decoder,
    token_ids: torch.Tensor,
    cache: Pages,
    place: Place,
    rotary: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """As DecoderPass, in torch."""
    update: torch.Tensor | None = None
    total = embed_reference(decoder.embedding, token_ids)
    taps: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(decoder.layers):
        rounded, _, total = norm_round_reference(total, update, layer.input_norm, decoder.eps)
        taps[index - 1] = total
        qkv, heads = layer.qkv.reference(rounded), layer.heads
        queries = rope_write_reference(qkv, cache, index, place, rotary, heads)
        rounded = attend_round_reference(queries, cache, index, place, rotary, heads)
        update = layer.output.reference(rounded)
        rounded, _, total = norm_round_reference(total, update, layer.mlp_norm, decoder.eps)
        gated = swiglu_round_reference(layer.gate_up.reference(rounded))
        update = layer.down.reference(gated)
    _, normed, total = norm_round_reference(total, update, decoder.final_norm, decoder.eps)
    taps[len(decoder.layers) - 1] = total
    wanted = [taps[layer] for layer in decoder.taps]
    return normed, torch.cat(wanted, dim=-1) if wanted else normed[:, :0]
