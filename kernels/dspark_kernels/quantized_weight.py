"""Weights [out, in] of 4 or 8 bits, and their repacking from AWQ, GPTQ, fp8 and fp4 checkpoints.

Every code is exact in bf16, so a product needs the scale once a group and rounds nothing else.
fp8 is e4m3, fp4 is e2m1 with a power of two (e8m0) for 32 columns, both as the Open Compute
Project's microscaling formats have them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

Kind = Literal["int8", "int4", "fp8", "fp4"]
NIBBLES = ("int4", "fp4")  # two codes to a byte
INT4_GROUPS = (32, 64, 128)
FP8_BLOCK = 128
FP8_MAX = 448.0
FP4_GROUP = 32
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # by the lower three bits; the highest is the sign
# position of the nibble of column i among the eight of an AWQ word
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """weight[n, k] = (code - zero) · scale, in groups along k.

    codes [N, K] int8 or float8_e4m3fn; int4 and fp4 are uint8 [N, K / 2], where byte j of a group
    holds its element j in the low half and element j + group / 2 in the high half. scales
    [N / rows_per_scale, K / group], fp4's of float8_e8m0fnu; zeros uint8 [N, K / group], int4 only.
    `order` [K] are the columns of x in the order of the codes, None for the order they have.
    """

    kind: Kind
    codes: torch.Tensor
    scales: torch.Tensor
    group: int
    rows_per_scale: int = 1
    zeros: torch.Tensor | None = None
    order: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        num_columns = self.codes.shape[1] * (2 if self.kind in NIBBLES else 1)
        return self.codes.shape[0], num_columns

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """[N, K], with the columns in the order of x."""
        values = self._values()
        num_rows, num_columns = values.shape
        scales = self.scales.float().repeat_interleave(min(self.rows_per_scale, num_rows), dim=0)
        scales = scales.repeat_interleave(min(self.group, num_columns), dim=1)
        values = values * scales[:num_rows, :num_columns]
        if self.order is not None:
            values = torch.empty_like(values).index_copy_(1, self.order, values)
        return values.to(dtype)

    def rows(self, begin: int) -> "QuantizedWeight":
        """Those from `begin` on, of the same memory. Raises ValueError inside a block of rows that
        share a scale."""
        if begin % self.rows_per_scale:
            raise ValueError(f"row {begin} is inside a block of {self.rows_per_scale}")
        return replace(
            self,
            codes=self.codes[begin:],
            scales=self.scales[begin // self.rows_per_scale :],
            zeros=None if self.zeros is None else self.zeros[begin:],
        )

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "QuantizedWeight":
        """The same weight of other tensors: on another device, say."""
        return replace(
            self,
            codes=move(self.codes),
            scales=move(self.scales),
            zeros=None if self.zeros is None else move(self.zeros),
            order=None if self.order is None else move(self.order),
        )

    def _values(self) -> torch.Tensor:
        """Codes [N, K] as numbers, less their zeros."""
        if self.kind not in NIBBLES:
            return self.codes.float()
        halves = self.codes.unflatten(1, (-1, self.group // 2))
        codes = torch.cat([halves & 15, halves >> 4], dim=-1)
        if self.kind == "fp4":
            signed = torch.tensor([*E2M1, *(-value for value in E2M1)], device=codes.device)
            return signed[codes.flatten(1).int()]
        assert self.zeros is not None
        return (codes.float() - self.zeros.float().unsqueeze(-1)).flatten(1)


def quantize_int8(weight: torch.Tensor, group: int | None = None) -> QuantizedWeight:
    """Symmetric; one scale a row without `group`, which has to divide the columns."""
    group = group or weight.shape[1]
    grouped = weight.float().unflatten(1, (-1, group))
    scales = _scales(grouped.abs().amax(-1) / 127, weight.dtype)
    codes = (grouped / scales.float().unsqueeze(-1)).round_().clamp_(-127, 127)
    return QuantizedWeight("int8", codes.flatten(1).to(torch.int8), scales, group)


def quantize_int4(weight: torch.Tensor, group: int = 128) -> QuantizedWeight:
    """Asymmetric, by the extremes of each group; `group` has to divide the columns."""
    grouped = weight.float().unflatten(1, (-1, group))
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scales = _scales((high - low) / 15, weight.dtype)
    zeros = (-low / scales.float()).round_().clamp_(0, 15)
    codes = (grouped / scales.float().unsqueeze(-1) + zeros.unsqueeze(-1)).round_().clamp_(0, 15)
    codes = codes.flatten(1).to(torch.uint8)
    return QuantizedWeight(
        "int4", pack_nibbles(codes, group), scales, group, zeros=zeros.to(torch.uint8)
    )


def quantize_fp8(weight: torch.Tensor) -> QuantizedWeight:
    """One scale a block of 128 x 128, as in the fp8 checkpoints of DeepSeek and Qwen."""
    num_rows, num_columns = weight.shape
    pad = (0, -num_columns % FP8_BLOCK, 0, -num_rows % FP8_BLOCK)
    padded = torch.nn.functional.pad(weight.float(), pad)
    blocks = padded.unflatten(0, (-1, FP8_BLOCK)).unflatten(2, (-1, FP8_BLOCK))
    scales = _scales(blocks.abs().amax((1, 3)) / FP8_MAX, torch.float32)
    codes = (blocks / scales[:, None, :, None]).flatten(2).flatten(0, 1)
    codes = codes[:num_rows, :num_columns].to(torch.float8_e4m3fn).contiguous()
    return from_fp8(codes, scales)


def from_fp8(
    codes: torch.Tensor,
    scales: torch.Tensor,
    block: tuple[int, int] = (FP8_BLOCK, FP8_BLOCK),
) -> QuantizedWeight:
    """codes [N, K] e4m3; scales per block of rows and columns, or per row: [N], [N, 1].

    The kernel multiplies in blocks of 128 x 128 and rows; others are for `dequantized`.
    """
    (num_rows, num_columns), (height, width) = codes.shape, block
    expected = (-(-num_rows // height), -(-num_columns // width))
    if tuple(scales.shape) == expected:
        return QuantizedWeight("fp8", codes, scales.contiguous(), width, height)
    if scales.numel() == num_rows:
        return QuantizedWeight("fp8", codes, scales.view(num_rows, 1).contiguous(), num_columns)
    raise ValueError(f"scales are {list(scales.shape)}, {list(expected)} expected")


def from_fp4(codes: torch.Tensor, scales: torch.Tensor) -> QuantizedWeight:
    """codes [N, K / 2] bytes with the even column in the low half; scales [N, K / 32] e8m0.

    As in DeepSeek-V4's experts.
    """
    pairs = codes.view(torch.uint8)
    columns = torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(1)
    expected = (columns.shape[0], columns.shape[1] // FP4_GROUP)
    if tuple(scales.shape) != expected or columns.shape[1] % FP4_GROUP:
        raise ValueError(f"scales are {list(scales.shape)}, {list(expected)} expected")
    packed = pack_nibbles(columns, FP4_GROUP)
    return QuantizedWeight("fp4", packed, e8m0(scales).contiguous(), FP4_GROUP)


def e8m0(stored: torch.Tensor) -> torch.Tensor:
    """Powers of two that a file holds as such, or as the bytes of their exponents."""
    return stored.view(torch.float8_e8m0fnu)


def from_awq(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> QuantizedWeight:
    """qweight int32 [K, N / 8], qzeros int32 [K / group, N / 8], scales [K / group, N]."""
    codes = _nibbles(qweight, AWQ_ORDER).t()
    zeros = _nibbles(qzeros, AWQ_ORDER).t()
    return _int4(codes, zeros, scales.t(), None)


def from_gptq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    g_idx: torch.Tensor | None = None,
    *,
    zero_offset: int = 1,
) -> QuantizedWeight:
    """qweight int32 [K / 8, N], qzeros int32 [K / group, N / 8], scales [K / group, N].

    g_idx [K] is the group of each column (act-order). The files' first format stores zeros less
    one: zero_offset 1; `gptq_v2` files store them as they are: 0.
    """
    codes = _nibbles(qweight.t().contiguous(), range(8))
    zeros = (_nibbles(qzeros, range(8)).t() + zero_offset) & 15
    order = None
    if g_idx is not None:
        group = codes.shape[1] // scales.shape[0]
        order = g_idx.argsort(stable=True)
        expected = torch.arange(codes.shape[1], device=g_idx.device) // group
        if not torch.equal(g_idx[order].long(), expected):
            raise ValueError("the groups of g_idx are not all of one size")
        if torch.equal(order, torch.arange(len(order), device=order.device)):
            order = None
        else:
            codes = codes[:, order]
    return _int4(codes, zeros, scales.t(), order)


def concatenated(weights: Sequence[QuantizedWeight]) -> QuantizedWeight | None:
    """One above the other; None where they do not share groups or the order of their columns."""
    first = weights[0]
    layouts = {(each.kind, each.group, each.rows_per_scale) for each in weights}
    is_whole = all(each.shape[0] % first.rows_per_scale == 0 for each in weights[:-1])
    if len(layouts) > 1 or not is_whole or not all(_share_order(first, e) for e in weights):
        return None
    zeros = [each.zeros for each in weights if each.zeros is not None]
    return replace(
        first,
        codes=torch.cat([each.codes for each in weights]),
        scales=torch.cat([each.scales for each in weights]),
        zeros=torch.cat(zeros) if zeros else None,
    )


def _share_order(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    if one.order is None or other.order is None:
        return one.order is other.order
    return torch.equal(one.order, other.order)


def pack_nibbles(codes: torch.Tensor, group: int) -> torch.Tensor:
    """codes uint8 [N, K] of 0..15 -> [N, K / 2] in the layout of QuantizedWeight."""
    low, high = codes.unflatten(1, (-1, group)).chunk(2, dim=-1)
    out: torch.Tensor = (low | high << 4).flatten(1).contiguous()
    return out


def _int4(
    codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, order: torch.Tensor | None
) -> QuantizedWeight:
    """codes [N, K], zeros and scales [N, K / group]. Wide groups are stored as several of 128."""
    group = codes.shape[1] // scales.shape[1]
    stored = min(group, INT4_GROUPS[-1])
    if stored not in INT4_GROUPS or group % stored or codes.shape[1] != group * scales.shape[1]:
        raise ValueError(f"int4 groups of {group} columns are not supported")
    zeros, scales = (t.repeat_interleave(group // stored, dim=1) for t in (zeros, scales))
    packed = pack_nibbles(codes.contiguous(), stored)
    return QuantizedWeight(
        "int4", packed, scales.contiguous(), stored, zeros=zeros.contiguous(), order=order
    )


def _nibbles(words: torch.Tensor, order: range | tuple[int, ...]) -> torch.Tensor:
    """int32 [A, B] -> uint8 [A, 8 B]; order[i] is where element i sits in its word."""
    shifts = torch.tensor([4 * place for place in order], device=words.device)
    return (words.unsqueeze(-1) >> shifts & 15).to(torch.uint8).flatten(1)


def _scales(scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rounded as they are stored, before any code is made with them; 1 for a group of zeros."""
    return scales.to(dtype).masked_fill_(scales.to(dtype) == 0, 1.0)
