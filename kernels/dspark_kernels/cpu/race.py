"""Draws of rows with a seed by our kernel: the token of the largest score and noise, as
`sampling.race` over `gumbel_row` says, where no rounding can decide otherwise."""

import ctypes
import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from dspark_kernels.cpu.philox_text import GROUP_WORDS, UNIT_GROUPS
from dspark_kernels.cpu.race_text import RECORD, UNDECIDED
from dspark_kernels.cpu.runtime import Op, Program, Runtime, running

HOTTEST = 2.0**60  # and 1 / HOTTEST: beyond, quick bounds might not hold
_NUMBERS, _WORDS = struct.Struct("=ffdd"), struct.Struct("=qqq")


class RowRace(NamedTuple):
    """logits float32 [V], a seed of 64 bits and what `sampling.race` takes. top_p leaves the
    likeliest tokens in the race."""

    logits: torch.Tensor
    seed: int
    place: int
    temperature: float
    top_p: float = 1.0


def race_rows(rows: Sequence[RowRace]) -> list[int | None]:
    """A token for each row, or None where the reference has to decide: near ties and near the edge
    of a nucleus, for rows that are no distribution, and where no kernels run."""
    runtime = running()
    if runtime is None or not all(map(_is_ours, rows)):
        return [None] * len(rows)
    return _table_of(runtime, len(rows)).race(rows)


class _Table:
    """Records of up to `size` rows, at a fixed address, and the program that runs them."""

    def __init__(self, runtime: Runtime, size: int) -> None:
        self.size, self._runtime = size, runtime
        self._words = (ctypes.c_int64 * (1 + size * len(RECORD)))()  # their number comes first
        self._address = ctypes.addressof(self._words)
        op = Op("race", 0, 1, (self._address + ctypes.sizeof(ctypes.c_int64),))
        self._program = Program(runtime, [op])

    def race(self, rows: Sequence[RowRace]) -> list[int | None]:
        words = [len(rows), *(word for row in rows for word in _record(row))]
        self._words[: len(words)] = [*words]
        self._runtime.run_jobs(self._program.job(self._address))
        tokens = self._words[len(RECORD) : len(words) : len(RECORD)]
        return [None if token == UNDECIDED else token for token in tokens]


class _Tables(threading.local):
    """Of this thread, the last one used."""

    runtime: Runtime | None = None
    table: _Table | None = None


_tables = _Tables()


def _table_of(runtime: Runtime, num_rows: int) -> _Table:
    table = _tables.table
    if table is None or _tables.runtime is not runtime or table.size < num_rows:
        table = _Table(runtime, 2 * num_rows)
        _tables.runtime, _tables.table = runtime, table
    return table


def _is_ours(row: RowRace) -> bool:
    logits = row.logits
    is_plain = logits.device.type == "cpu" and logits.dtype == torch.float32
    is_dense = logits.stride(0) == 1 or len(logits) == 1
    return is_plain and is_dense and 1 / HOTTEST <= row.temperature <= HOTTEST


def _record(row: RowRace) -> tuple[int, ...]:
    """As RECORD. The margin is what sums of probabilities in float32 may be off by."""
    count = len(row.logits)
    margin = 2.0**-14 + count * 2.0**-28
    numbers = _WORDS.unpack(_NUMBERS.pack(row.temperature, 0.0, row.top_p, margin))
    return row.logits.data_ptr(), count, _signed(row.seed), row.place, *numbers, UNDECIDED


def noise_words(seed: int, place: int, count: int) -> np.ndarray | None:
    """[count] numbers of 32 bits, those of noise.py; None where no kernels run."""
    runtime = running()
    if runtime is None:
        return None
    groups = -(-count // GROUP_WORDS)
    out = torch.empty(groups * GROUP_WORDS, dtype=torch.int32)
    units = -(-groups // UNIT_GROUPS)
    runtime.run([Op("noise_words", units, 0, (_signed(seed), place, out, groups))], 0)
    return out.numpy().view("<u4")[:count]


def _signed(number: int) -> int:
    """The same 64 bits."""
    return (number + 2**63) % 2**64 - 2**63
