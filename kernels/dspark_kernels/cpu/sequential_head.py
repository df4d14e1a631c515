"""The light sequential head of drafts, left to right in one call: for every position the bias of
the token before it, the confidence and the choice of the next one.

Bias tables are int8 copies; a request's own columns, and confidences, are float32. A request has
the same bits in any company.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch

from dspark_kernels.cpu.exact import fma
from dspark_kernels.cpu.float_text import LANES, tree_sum
from dspark_kernels.cpu.matrix import multiply_op, multiply_reference
from dspark_kernels.cpu.pool import Job
from dspark_kernels.cpu.quantize import quantize_q8_0
from dspark_kernels.cpu.rounded import GROUP, empty_rounded, round_rows_reference
from dspark_kernels.cpu.runtime import Op, Program, Runtime
from dspark_kernels.cpu.sequential_text import OWN_RECORD, STEP
from dspark_kernels.cpu.stored_weight import StoredWeight


class SequentialHead(NamedTuple):
    """N columns for all requests. H hidden, r rank, R the rank in whole groups of 32; r = R = 0
    without tables (DFlash)."""

    w1: torch.Tensor | None  # float32 [V, r]
    w2: StoredWeight | None  # [N, R]
    ids: torch.Tensor  # int64 [N], their tokens
    confidence: torch.Tensor | None  # float32 [H + R]
    confidence_bias: float = 0.0

    @property
    def rank(self) -> int:
        return 0 if self.w1 is None else self.w1.shape[1]

    @property
    def feature_width(self) -> int:
        """R."""
        return 0 if self.w2 is None else self.w2.width

    @property
    def num_columns(self) -> int:
        return len(self.ids)

    @property
    def own_at(self) -> int:
        """Where a request's own columns begin."""
        return -(-self.num_columns // LANES) * LANES


class OwnColumns(NamedTuple):
    """One request's, the first `num_used` of C: rows float32 [C, H + R] of output head and Markov
    table side by side, ids int64 [C]."""

    rows: torch.Tensor
    ids: torch.Tensor
    num_used: int


class Noise(NamedTuple):
    """What draws instead of taking the likeliest: noise as the logits, inverses [R] of the
    temperatures."""

    noise: torch.Tensor
    inverses: torch.Tensor


class Choices(NamedTuple):
    """tokens int64 [R, K]; logits of confidence float32 [R, K] before calibration."""

    tokens: torch.Tensor
    confidences: torch.Tensor | None


class ChosenRows(NamedTuple):
    """As Choices, in lists; no confidences without a head for them."""

    tokens: list[list[int]]
    confidences: list[list[float]]


def sequential_head(
    tables: tuple[torch.Tensor, torch.Tensor] | None,
    ids: torch.Tensor,
    confidence: tuple[torch.Tensor, float] | None,
    hidden_size: int,
) -> SequentialHead:
    """Markov tables w1 [V, r], w2 [N, r]; the confidence's weight [H] or [H + r], and its bias."""
    rank = 0 if tables is None else tables[0].shape[1]
    missing = -rank % GROUP
    row, bias = (None, 0.0) if confidence is None else confidence
    if row is not None:
        row = torch.nn.functional.pad(row, (0, hidden_size + rank + missing - len(row)))
    if tables is None:
        return SequentialHead(None, None, ids, row, bias)
    w1, w2 = tables
    copy = quantize_q8_0(torch.nn.functional.pad(w2, (0, missing)))
    return SequentialHead(w1.contiguous(), copy, ids, row, bias)


class SequentialPass:
    """Buffers and the program of blocks of K tokens for up to `most` requests.

    Of a request's `block_rows` rows the last K predict.
    """

    def __init__(
        self,
        runtime: Runtime,
        head: SequentialHead,
        *,
        hidden_size: int,
        row_columns: int,
        block_size: int,
        block_rows: int,
        most: int,
    ) -> None:
        """`row_columns`: of a row of logits, where the columns of a request come last."""
        self._runtime, self._head, self._size = runtime, head, block_size
        self._words = (ctypes.c_int64 * (len(STEP) + most * len(OWN_RECORD)))()
        self._address = ctypes.addressof(self._words)
        self._hidden_bytes, self._logits_bytes = 4 * hidden_size, 4 * row_columns
        self._first, self._rows = block_rows - block_size, block_rows
        self._tokens = torch.zeros(most, block_size + 1, dtype=torch.int64)
        self._x = torch.zeros(most, hidden_size + head.feature_width)
        # without tables one row of zeros for all requests
        self._bias = torch.zeros(1 if head.w2 is None else most, head.own_at)
        self._bias_bytes = 0 if head.w2 is None else 4 * head.own_at
        self._rounded = empty_rounded(most, head.feature_width or GROUP).data
        self._confidences = torch.zeros(most, block_size)
        # the same memory, for Python: few numbers are the quicker read so
        tokens = ctypes.c_int64 * self._tokens.numel()
        confidences = ctypes.c_float * self._confidences.numel()
        self._token_memory = tokens.from_address(self._tokens.data_ptr())
        self._confidence_memory = confidences.from_address(self._confidences.data_ptr())
        self._greedy, self._noisy = (
            Program(runtime, [op for k in range(block_size) for op in self._step(k, name)])
            for name in ("draft_choice", "draft_choice_noise")
        )

    def __call__(
        self,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        anchors: torch.Tensor,
        owns: Sequence[OwnColumns],
        noise: Noise | None = None,
    ) -> Choices:
        """hidden float32 [R * block_rows, H]; logits [R * block_rows, row_columns] of the output
        head's columns, to which the bias is added in place, and behind them the own columns'."""
        self._runtime.run_jobs(self.job(hidden, logits, anchors.tolist(), owns, noise))
        confidences = None if self._head.confidence is None else self._confidences[: len(owns)]
        return Choices(
            self._tokens[: len(owns), 1:].clone(),
            None if confidences is None else confidences.clone(),
        )

    def job(
        self,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        anchors: Sequence[int],
        owns: Sequence[OwnColumns],
        noise: Noise | None = None,
    ) -> Job:
        """As __call__, to be run, and `chosen` to be read, before the next one is asked for."""
        count, first = len(owns), len(STEP)
        self._kept = owns, noise  # until then
        for request, anchor in enumerate(anchors):
            self._token_memory[request * (self._size + 1)] = anchor
        records = [(o.rows.data_ptr(), o.ids.data_ptr(), o.num_used) for o in owns]
        words = [word for record in records for word in record]
        self._words[first : first + len(words)] = [*words]
        pointers = [hidden.data_ptr(), logits.data_ptr(), self._address + 8 * first]
        pointers += [0, 0] if noise is None else [each.data_ptr() for each in noise]
        for index, word in enumerate((count, *pointers)):
            self._words[index] = word
        return (self._greedy if noise is None else self._noisy).job(self._address)

    def chosen(self, count: int) -> ChosenRows:
        """Of the last job."""
        width, size = self._size + 1, self._size
        tokens = [self._token_memory[r * width + 1 : (r + 1) * width] for r in range(count)]
        if self._head.confidence is None:
            return ChosenRows(tokens, [])
        memory = self._confidence_memory
        return ChosenRows(tokens, [memory[r * size : (r + 1) * size] for r in range(count)])

    def _step(self, k: int, choice: str) -> list[Op]:
        head, x_bytes = self._head, 4 * self._x.stride(0)
        row, token_bytes = self._first + k, 8 * self._tokens.stride(0)
        confidence = 0 if head.confidence is None else head.confidence
        bias_bits = int(torch.tensor(head.confidence_bias, dtype=torch.float32).view(torch.int32))
        features = (
            self._tokens[:, k], token_bytes, 0 if head.w1 is None else head.w1, head.rank,
            self._x, x_bytes,
            row * self._hidden_bytes, self._rows * self._hidden_bytes, self._hidden_bytes,
            self._rounded, head.feature_width // GROUP,
            confidence, self._confidences[:, k], 4 * self._size, bias_bits,
        )  # fmt: skip
        chosen = (
            self._tokens[:, k + 1], token_bytes,
            row * self._logits_bytes, self._rows * self._logits_bytes,
            self._bias, self._bias_bytes, head.num_columns, head.ids, 4 * head.own_at,
            self._x, x_bytes,
        )  # fmt: skip
        bias = [] if head.w2 is None else [multiply_op(head.w2, None, self._rounded, self._bias)]
        return [Op("draft_features", 0, 1, features), *bias, Op(choice, 0, 1, chosen)]


def sequential_reference(
    head: SequentialHead,
    hidden: torch.Tensor,
    logits: torch.Tensor,
    anchors: torch.Tensor,
    owns: Sequence[OwnColumns],
    noise: Noise | None = None,
) -> Choices:
    """As SequentialPass, in torch: hidden [R, K, H], logits and noise [R, K, row_columns]."""
    own_at = head.own_at
    tokens, confidences = [anchors], []
    for k in range(hidden.shape[1]):
        features = torch.zeros(len(owns), head.feature_width)
        if head.w1 is not None:
            features[:, : head.rank] = head.w1[tokens[-1]]
        x = torch.cat([hidden[:, k], features], dim=1)
        if head.confidence is not None:
            confidences.append(_dot(head.confidence.unsqueeze(0), x)[:, 0] + head.confidence_bias)
        if head.w2 is not None:
            logits[:, k, : head.num_columns] += multiply_reference(
                round_rows_reference(features), head.w2
            )
        chosen = []
        for r, own in enumerate(owns):
            columns = [*range(head.num_columns), *range(own_at, own_at + own.num_used)]
            logits[r, k, own_at : own_at + own.num_used] = _dot(
                own.rows[: own.num_used], x[r : r + 1]
            )
            scores = logits[r, k, columns]
            if noise is not None:
                scores = scores * noise.inverses[r] + noise.noise[r, k, columns]
            ids = torch.cat([head.ids, own.ids[: own.num_used]])
            chosen.append(ids[scores.argmax()])
        tokens.append(torch.stack(chosen))
    found = torch.stack(confidences, 1) if confidences else None
    return Choices(torch.stack(tokens[1:], 1), found)


def _dot(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """rows [C, W], x [M, W] -> [M, C], in the kernel's order."""
    sums = torch.zeros(len(x), len(rows), LANES)
    for row, each in zip(rows.split(LANES, dim=1), x.split(LANES, dim=1), strict=True):
        sums = fma(row.unsqueeze(0), each.unsqueeze(1), sums)
    return tree_sum(sums)
