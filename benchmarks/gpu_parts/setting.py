"""Shared by all sections: device, sizes, random inputs, verdicts."""

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from dspark.kvcache.page_pool import PagedPool, page_rows
from dspark.kvcache.row_pool import KVSlot, RowPlan
from dspark_kernels.paged_cache import PagedRows
from dspark_kernels.quantized_weight import FP8_BLOCK, QuantizedWeight
from dspark_kernels.repacked_weight import FP4_GROUP, GGUF_GROUP, from_fp4, from_fp8
from gpu_parts.shapes import SHAPES, TINY, ModelShape

Item = TypeVar("Item")
Record = dict[str, Any]
Weight = torch.Tensor | QuantizedWeight

KINDS = ("bf16", "int8", "int4", "fp8", "fp4")
OF_GGUF = ("q4_0", "q4_1", "q4_k", "q8_0")
INT4_GROUP = 128
# RMS error over RMS of the reference. float32: another order of a few thousand terms. bf16: one
# rounding of the result is 2**-8 / sqrt(12) on average; some kernels round up to three times.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 4e-3}
# the exponential of a number near -20 in float32 is off by 20 · 2**-24, and sums add to it
EXPONENTIAL_BOUND = 5e-6
WANTED_TOKENS = 100_000  # of each kind of decoding, to be compared
HEAD, TAIL = 200, 900  # characters of an error: compilers give the reason last


@dataclass(slots=True)
class Progress:
    """Which of a section's cases is under way."""

    case: int = 0


@dataclass(frozen=True, slots=True)
class Setting:
    """bandwidth in bytes a second, 0 while unknown; share: which of how many parts of the cases.

    deadline: when this section's time is up, as time.time has it. first_case: those before it are
    done. deepspec: a checkout of it.
    """

    device: torch.device
    is_tiny: bool
    deadline: float
    bandwidth: float = 0.0
    share: tuple[int, int] = (0, 1)
    deepspec: Path | None = None
    first_case: int = 0
    progress: Progress = field(default_factory=Progress)

    @property
    def shapes(self) -> tuple[ModelShape, ...]:
        return (TINY,) if self.is_tiny else SHAPES

    @property
    def contexts(self) -> tuple[int, ...]:
        return (300,) if self.is_tiny else (512, 8192)

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.time()

    def cases(self, every: Iterable[Item]) -> Iterator[Item]:
        """Those that this process has to do."""
        part, of = self.share
        for index, item in enumerate(every):
            if index % of == part and index >= self.first_case:
                self.progress.case = index
                yield item

    def floor_us(self, num_bytes: int) -> float | None:
        return num_bytes / self.bandwidth * 1e6 if self.bandwidth else None


def attempt(facts: Record, run: Callable[[], Record]) -> Record:
    """`facts` with the result of run(), or its error: one kernel's failure does not end the run."""
    try:
        return facts | run()
    except ModuleNotFoundError as error:
        return facts | {"skipped": f"{error.name} is not installed"}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return facts | {"ok": False, "error": f"{told(error)} ({where.name}:{where.lineno})"}


def told(error: BaseException) -> str:
    """Its message, without the middle of a long one."""
    message = f"{type(error).__name__}: {error}"
    if len(message) <= HEAD + TAIL:
        return message
    return f"{message[:HEAD]} … {message[-TAIL:]}"


def row_counts(setting: Setting) -> tuple[int, ...]:
    return (1, 2, 4) if setting.is_tiny else tuple(range(1, 17))


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """RMS of the difference over RMS of what was expected; NaN where the result holds one."""
    difference = torch.linalg.vector_norm(result.double() - expected.double())
    return float(difference / torch.linalg.vector_norm(expected.double()).clamp(min=1e-30))


def verdict(errors: dict[str, tuple[float, float]], **bit_equal: bool) -> Record:
    """errors: of each output its relative error and the bound of that."""
    return {
        "errors": {
            name: {"relative": error, "bound": bound} for name, (error, bound) in errors.items()
        },
        "bit_equal": bit_equal,
        "ok": all(e <= bound for e, bound in errors.values()) and all(bit_equal.values()),
    }


def near(result: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    if result.shape != expected.shape:
        raise ValueError(f"{list(result.shape)} instead of {list(expected.shape)}")
    return relative_error(result, expected), BOUNDS[result.dtype]


def summed(records: Sequence[Record]) -> Record:
    """`ok`: nothing differed; `reached`: the wanted number was compared."""
    total = sum(record.get("tokens", 0) for record in records)
    return {
        "arm": "all",
        "tokens": total,
        "wanted_tokens": WANTED_TOKENS,
        "reached": total >= WANTED_TOKENS,
        "ok": total > 0 and all(record.get("ok", True) for record in records),
    }


def random_weight(
    kind: str, shape: tuple[int, int], device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Weight:
    """Random codes, so that no float32 copy is needed; products keep the size of their input."""
    num_rows, num_columns = shape
    if kind == "bf16":
        values = torch.randn(shape, device=device, dtype=dtype)
        return values.mul_(num_columns**-0.5)

    def scales(*size: int, of: torch.dtype, spread: float) -> torch.Tensor:
        drawn = torch.rand(size, device=device) + 0.5
        return (drawn / (spread * num_columns**0.5)).to(of)

    if kind == "int8":
        codes = torch.randint(-127, 128, shape, device=device, dtype=torch.int8)
        of_rows = scales(num_rows, 1, of=dtype, spread=73.0)
        return QuantizedWeight("int8", codes, of_rows, num_columns)
    if kind.startswith("q4"):  # of a GGUF
        half, groups = (num_rows, num_columns // 2), (num_rows, num_columns // GGUF_GROUP)
        packed = torch.randint(0, 256, half, device=device, dtype=torch.uint8)
        precision = torch.float32 if kind == "q4_k" else torch.float16
        of_groups = scales(*groups, of=precision, spread=6.5)
        if kind == "q4_0":
            zeros = torch.full(groups, 8, device=device, dtype=torch.uint8)
            return QuantizedWeight("int4", packed, of_groups, GGUF_GROUP, zeros=zeros)
        return QuantizedWeight("int4", packed, of_groups, GGUF_GROUP, leasts=-8 * of_groups)
    if kind == "q8_0":
        codes = torch.randint(-127, 128, shape, device=device, dtype=torch.int8)
        of_groups = scales(num_rows, num_columns // GGUF_GROUP, of=torch.float16, spread=73.0)
        return QuantizedWeight("int8", codes, of_groups, GGUF_GROUP)
    if kind == "int4":
        half, groups = (num_rows, num_columns // 2), (num_rows, num_columns // INT4_GROUP)
        packed = torch.randint(0, 256, half, device=device, dtype=torch.uint8)
        zeros = torch.randint(0, 16, groups, device=device, dtype=torch.uint8)
        of_groups = scales(*groups, of=dtype, spread=6.5)
        return QuantizedWeight("int4", packed, of_groups, INT4_GROUP, zeros=zeros)
    if kind == "fp4":
        pairs = torch.randint(
            0, 256, (num_rows, num_columns // 2), device=device, dtype=torch.uint8
        )
        of_runs = scales(num_rows, num_columns // FP4_GROUP, of=torch.float32, spread=3.0)
        return from_fp4(pairs, of_runs.to(torch.float8_e8m0fnu))
    codes = torch.randn(shape, device=device, dtype=dtype).to(torch.float8_e4m3fn)
    blocks = (-(-num_rows // FP8_BLOCK), -(-num_columns // FP8_BLOCK))
    return from_fp8(codes, scales(*blocks, of=torch.float32, spread=1.0))


def weight_bytes(weight: Weight) -> int:
    if not isinstance(weight, QuantizedWeight):
        return weight.nbytes
    return sum(part.nbytes for part in weight.tensors.values())


def random_pool(
    num_layers: int,
    shape: ModelShape,
    length: int,
    setting: Setting,
    dtype: torch.dtype = torch.bfloat16,
    num_slots: int = 1,
) -> tuple[PagedPool, list[KVSlot]]:
    """Every slot with room for `length` positions, all of them random numbers."""
    pages = -(-length // 256)
    pool = PagedPool(
        num_layers, shape.num_kv_heads, shape.head_dim, setting.device, dtype,
        num_pages=pages * num_slots, num_slots=num_slots, max_length=length,
    )  # fmt: skip
    slots = [pool.open() for _ in range(num_slots)]
    for slot in slots:
        pool.reserve(slot.index, length)
    for layer in range(num_layers):
        for cached in pool.layer(layer):
            cached.normal_()
    return pool, slots


def rows_at(
    pool: PagedPool, slots: list[KVSlot], starts: list[int], sizes: list[int], *, causal: bool
) -> PagedRows:
    for slot, start in zip(slots, starts, strict=True):
        slot.length = start
    return page_rows(RowPlan(slots, sizes, causal=causal), pool.tables.device)


def rotary_tables(
    shape: ModelShape, length: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """As Qwen3 turns: base 1e6, over the whole head."""
    from dspark_kernels.rope import RotaryTable

    exponent = torch.arange(0, shape.head_dim, 2, device=device) / shape.head_dim
    return RotaryTable(1e6**-exponent, 1.0, dtype).upto(length)
