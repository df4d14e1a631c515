"""Keys and values in 8 bits: a code for each number, a scale for each row and head.

Rows are coded once, when they are written, and a code is exact in bf16: whatever reads them, in
whatever batch, reads the same numbers.
"""

from typing import Any, Literal, NamedTuple

import torch

from dspark_kernels.backend import jit, tl

CodeKind = Literal["int8", "fp8"]
LARGEST = {"int8": 127.0, "fp8": 448.0}
SCALE_BYTES = 4
LEAST = 1e-30  # of a row's largest number: a row of zeros has a scale, too


class CodedRows(NamedTuple):
    """number = code * scale. codes [pages, kv_heads, PAGE, D] int8 or float8_e4m3fn, scales
    [pages, kv_heads, PAGE] float32; both lie in one buffer, page by page and head by head."""

    codes: torch.Tensor
    scales: torch.Tensor

    def numbers(self, pages: torch.Tensor) -> torch.Tensor:
        """Of these pages [n]: [n, kv_heads, PAGE, D] float32."""
        return self.codes[pages].float() * self.scales[pages].unsqueeze(-1)


Cached = torch.Tensor | CodedRows


def coded_bytes(head_dim: int) -> int:
    """Of one row of one head."""
    return head_dim + SCALE_BYTES


def split_codes(block: torch.Tensor, head_dim: int, kind: CodeKind) -> CodedRows:
    """Of a buffer [..., PAGE * coded_bytes] of bytes: a page's codes, then their scales."""
    page = block.shape[-1] // coded_bytes(head_dim)
    codes, scales = block.split([page * head_dim, page * SCALE_BYTES], dim=-1)
    dtype = torch.int8 if kind == "int8" else torch.float8_e4m3fn
    return CodedRows(codes.view(dtype).unflatten(-1, (page, head_dim)), scales.view(torch.float32))


def coded(numbers: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """numbers [..., D] -> codes [..., D] of that dtype and their scales [...]; a row with NaN or
    infinity has the scale NaN."""
    numbers = numbers.float()
    largest = numbers.abs().amax(-1).clamp(min=LEAST)
    most = LARGEST["int8" if dtype == torch.int8 else "fp8"]
    codes = numbers / (largest / most).unsqueeze(-1)
    if dtype == torch.int8:
        codes = codes.nan_to_num().round()
    return codes.to(dtype), largest / most + (numbers * 0).sum(-1)


class CacheArguments(NamedTuple):
    """How a kernel reads and writes keys or values: `kind` "" are numbers; strides in elements."""

    rows: torch.Tensor
    scales: torch.Tensor | None
    kind: str
    page_stride: int
    head_stride: int


def cache_arguments(cached: Cached) -> CacheArguments:
    if isinstance(cached, torch.Tensor):
        return CacheArguments(cached, None, "", cached.stride(0), cached.stride(1))
    codes, kind = cached.codes, "int8"
    if codes.dtype != torch.int8:
        codes, kind = codes.view(torch.uint8), "fp8_bits"
    return CacheArguments(codes, cached.scales, kind, codes.stride(0), codes.stride(1))


def cache_types(kind: str, dtype: str) -> dict[str, Any]:
    """For builds: the types of keys and values of that kind, and of their scales."""
    rows = {"": dtype, "int8": "i8", "fp8_bits": "u8"}[kind]
    types = dict.fromkeys(("keys", "values"), f"*{rows}")
    scales = dict.fromkeys(("key_scales", "value_scales"), "*fp32")
    return types | (scales if kind else {})


def absent_scales(kind: str) -> dict[str, None]:
    """For builds: the arguments that numbers do not have."""
    return {} if kind else {"key_scales": None, "value_scales": None}


@jit
def row_scale(first: tl.tensor, second: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """Of a row in two halves; NaN if one of its numbers is NaN or infinite."""
    MOST: tl.constexpr = 127.0 if KIND == "int8" else 448.0
    largest = tl.max(tl.maximum(tl.abs(first), tl.abs(second)), axis=0)
    return tl.maximum(largest, 1e-30) / MOST + tl.sum(first * 0.0 + second * 0.0, axis=0)


@jit
def code_of(x: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """float32 x, of at most the largest code, to its nearest code; ties go to even.

    By the bits of float32, the same on every card: adding 1.5 * 2^23 leaves a whole number in the
    last ones. Above 2^-6 an e4m3 has the upper 3 bits of the mantissa; below, it counts 2^-9.
    """
    if KIND == "int8":
        code = ((x + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000).to(tl.int8)
    else:
        size = tl.abs(x)
        bits = size.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 120 * 8
        small = (size * 512.0 + 8388608.0).to(tl.int32, bitcast=True) - 0x4B000000
        size_code = tl.where(size < 0.015625, small, normal)
        code = tl.where(x < 0, size_code | 0x80, size_code).to(tl.uint8)
    return code
