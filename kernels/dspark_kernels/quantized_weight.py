"""Weights [out, in] of 4 or 8 bits.

AWQ is Lin et al. 2023, GPTQ Frantar et al. 2022; FP8 is e4m3 and FP4 is e2m1 with a power of two
(e8m0) per 32 columns, as in the Open Compute Project's microscaling formats. Every code is exact in
bf16, so a product needs the scale once per group and rounds nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

Kind = Literal["int8", "int4", "fp8", "fp4"]
NIBBLES = ("int4", "fp4")  # two codes to a byte
FP8_BLOCK = 128
FP8_MAX = 448.0
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # by the lower three bits; the highest is the sign


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """weight[n, k] = (code - zero) · scale + least, in groups along k.

    codes [N, K] int8 or float8_e4m3fn; int4 and fp4 are uint8 [N, K / 2], where byte j of a group
    holds its element j in the low half and element j + group / 2 in the high half. scales
    [N / rows_per_scale, K / group], fp4's of float8_e8m0fnu. int4 has either zeros, uint8
    [N, K / group], or leasts [N, K / group]; no other kind has any.
    `order` [K] are the columns of x in the order of the codes, None for the order they have.
    """

    kind: Kind
    codes: torch.Tensor
    scales: torch.Tensor
    group: int
    rows_per_scale: int = 1
    zeros: torch.Tensor | None = None
    order: torch.Tensor | None = None
    leasts: torch.Tensor | None = None

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Those that it has, by name."""
        names = ("codes", "scales", "zeros", "order", "leasts")
        found = {name: getattr(self, name) for name in names}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

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
        if self.leasts is not None:
            values += self.leasts.float().repeat_interleave(self.group, dim=1)
        if self.order is not None:
            values = torch.empty_like(values).index_copy_(1, self.order, values)
        return values.to(dtype)

    def rows(self, begin: int, end: int | None = None) -> "QuantizedWeight":
        """Rows `begin` to `end`, of the same memory. Raises ValueError if `begin` is inside a block
        of rows that share a scale."""
        per = self.rows_per_scale
        if begin % per:
            raise ValueError(f"row {begin} is inside a block of {per}")
        last = None if end is None else -(-end // per)
        of_rows: dict[str, Any] = {
            name: tensor[begin:end]
            for name, tensor in self.tensors.items()
            if name not in ("scales", "order")
        }
        return replace(self, scales=self.scales[begin // per : last], **of_rows)

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "QuantizedWeight":
        """The same weight of other tensors, such as on another device."""
        moved: dict[str, Any] = {name: move(tensor) for name, tensor in self.tensors.items()}
        return replace(self, **moved)

    def _values(self) -> torch.Tensor:
        """Codes [N, K] as numbers, less their zeros."""
        if self.kind not in NIBBLES:
            return self.codes.float()
        halves = self.codes.unflatten(1, (-1, self.group // 2))
        codes = torch.cat([halves & 15, halves >> 4], dim=-1)
        if self.kind == "fp4":
            signed = torch.tensor([*E2M1, *(-value for value in E2M1)], device=codes.device)
            return signed[codes.flatten(1).int()]
        if self.zeros is None:
            return codes.float().flatten(1)
        return (codes.float() - self.zeros.float().unsqueeze(-1)).flatten(1)


def quantize_int8(weight: torch.Tensor, group: int | None = None) -> QuantizedWeight:
    """weight [N, K], symmetric; one scale per row without `group`, which must divide K."""
    group = group or weight.shape[1]
    grouped = weight.float().unflatten(1, (-1, group))
    scales = _scales(grouped.abs().amax(-1) / 127, weight.dtype)
    codes = (grouped / scales.float().unsqueeze(-1)).round_().clamp_(-127, 127)
    return QuantizedWeight("int8", codes.flatten(1).to(torch.int8), scales, group)


def quantize_int4(weight: torch.Tensor, group: int = 128) -> QuantizedWeight:
    """weight [N, K], asymmetric by the extremes of each group; `group` must divide K."""
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
    return QuantizedWeight("fp8", codes, scales, FP8_BLOCK, FP8_BLOCK)


def concatenated(weights: Sequence[QuantizedWeight]) -> QuantizedWeight | None:
    """Concatenated by rows; None if they differ in groups or the order of their columns."""
    first = weights[0]
    if len(weights) == 1:
        return first
    layouts = {
        (each.kind, each.group, each.rows_per_scale, each.scales.dtype, *each.tensors)
        for each in weights
    }
    is_whole = all(each.shape[0] % first.rows_per_scale == 0 for each in weights[:-1])
    if len(layouts) > 1 or not is_whole or not all(_share_order(first, e) for e in weights):
        return None
    of_rows = [name for name in first.tensors if name != "order"]
    joined: dict[str, Any] = {
        name: torch.cat([each.tensors[name] for each in weights]) for name in of_rows
    }
    return replace(first, **joined)


def _share_order(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    if one.order is None or other.order is None:
        return one.order is other.order
    return torch.equal(one.order, other.order)


def pack_nibbles(codes: torch.Tensor, group: int) -> torch.Tensor:
    """codes uint8 [N, K] of 0..15 -> [N, K / 2] in the layout of QuantizedWeight."""
    low, high = codes.unflatten(1, (-1, group)).chunk(2, dim=-1)
    out: torch.Tensor = (low | high << 4).flatten(1).contiguous()
    return out


def _scales(scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rounded as they are stored, before any code is made with them; 1 for a group of zeros."""
    return scales.to(dtype).masked_fill_(scales.to(dtype) == 0, 1.0)
