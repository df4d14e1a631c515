"""Weights of AWQ, GPTQ, fp8, fp4 and GGUF files, repacked as a QuantizedWeight."""

import torch

from dspark_kernels.cpu.formats import FORMATS
from dspark_kernels.cpu.stored_weight import StoredWeight, group_factors
from dspark_kernels.quantized_weight import FP8_BLOCK, QuantizedWeight, pack_nibbles

INT4_GROUPS = (32, 64, 128)
FP4_GROUP = 32
GGUF_GROUP = 32
# position of the nibble of column i among the eight of an AWQ word
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


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


def from_gguf(weight: StoredWeight) -> QuantizedWeight | None:
    """The same codes, to the number; None of formats with codes of 5 or 6 bits in groups that have
    a least number or are narrower than 32."""
    form = FORMATS[weight.kind]
    if form.parts > 1 or (form.has_least and form.bits != 4):
        return None
    parts = weight.parts(torch.arange(weight.num_outputs))
    scales, leasts = parts.factors, parts.leasts
    if form.is_super:  # products of two, exact in float32
        scales, leasts = group_factors(form, parts)
    if form.bits != 4:
        codes = (parts.codes.int() - form.offset).to(torch.int8)
        return QuantizedWeight("int8", codes, scales, GGUF_GROUP)
    codes = pack_nibbles(parts.codes, GGUF_GROUP)
    if leasts is not None:
        return QuantizedWeight("int4", codes, scales, GGUF_GROUP, leasts=leasts)
    zeros = torch.full(scales.shape, form.offset, dtype=torch.uint8)
    return QuantizedWeight("int4", codes, scales, GGUF_GROUP, zeros=zeros)
