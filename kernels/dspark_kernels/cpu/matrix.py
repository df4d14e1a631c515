"""Stored weights times rounded rows.

Sums of products of codes are whole numbers, exact in any order, and rounded once. Then, group after
group and for each part of a group: out = fma(scale of the row · sum, factor, out), and with leasts
out = fma(row's scale · sum of its codes, least, out). It begins with the bias, or zero.
"""

import torch

from dspark_kernels.cpu.exact import fma
from dspark_kernels.cpu.formats import FORMATS
from dspark_kernels.cpu.rounded import GROUP, RoundedRows
from dspark_kernels.cpu.runtime import Op, current
from dspark_kernels.cpu.stored_weight import LANES, StoredWeight, group_factors

OUT_WORD = 1  # of multiply_op's words
NO_BIAS = torch.zeros(LANES)


def multiply(
    rows: RoundedRows, weight: StoredWeight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """rows [M, K], weight [N, K], bias float32 [N] -> float32 [M, N]."""
    _check(rows, weight, bias)
    runtime = current()
    if runtime is None:
        return multiply_reference(rows, weight, bias)
    out = torch.empty(rows.num_rows, weight.num_blocks * LANES)
    runtime.run([multiply_op(weight, padded_bias(weight, bias), rows.data, out)], rows.num_rows)
    return out[:, : weight.num_outputs]


def multiply_op(
    weight: StoredWeight, bias: torch.Tensor | None, rows: torch.Tensor, out: torch.Tensor
) -> Op:
    """rows as RoundedRows.data, bias of whole blocks, out float32 [M, at least whole blocks]."""
    planes = [plane if plane.numel() else 0 for plane in weight.planes()]
    biases: tuple[torch.Tensor, int] = (NO_BIAS, 0) if bias is None else (bias, 4 * LANES)
    sizes = (out.stride(0) * 4, weight.width // GROUP)
    return Op(f"matrix_{weight.kind}", weight.num_blocks, 0, (rows, out, *sizes, *biases, *planes))


def padded_bias(weight: StoredWeight, bias: torch.Tensor | None) -> torch.Tensor | None:
    """bias [N] -> [N rounded up to whole blocks], zeros behind it."""
    if bias is None:
        return None
    return torch.nn.functional.pad(bias, (0, -weight.num_outputs % LANES)).contiguous()


def multiply_reference(
    rows: RoundedRows, weight: StoredWeight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """As multiply, in torch."""
    _check(rows, weight, bias)
    form, outputs = FORMATS[weight.kind], torch.arange(weight.num_outputs)
    parts = weight.parts(outputs)
    factors, leasts = group_factors(form, parts)
    size, scales = GROUP // form.parts, rows.scales()
    codes = (parts.codes.double() - form.offset).unflatten(1, (-1, size))  # [N, G parts, size]
    x = rows.codes().double().unflatten(1, (-1, size))
    out = torch.zeros(rows.num_rows, 1) if bias is None else bias.expand(rows.num_rows, -1)
    for index in range(codes.shape[1]):
        group = index // form.parts
        sums = (x[:, index] @ codes[:, index].t()).float()
        out = fma(sums * scales[:, group, None], factors[:, index], out)
        if leasts is not None and index % form.parts == form.parts - 1:
            out = fma(rows.scaled_sums()[:, group, None], leasts[:, group], out)
    return out


def _check(rows: RoundedRows, weight: StoredWeight, bias: torch.Tensor | None) -> None:
    if rows.width != weight.width:
        raise ValueError(f"rows of {rows.width} numbers meet a weight of {weight.width} inputs")
    if bias is not None and bias.shape != (weight.num_outputs,):
        raise ValueError(f"a bias {list(bias.shape)} of {weight.num_outputs} outputs")
