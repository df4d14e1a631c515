"""Weights in 8 or 4 bits with a power of two as the scale of each block (e8m0: an exponent).

FP8 is e4m3 in blocks of rows and columns; FP4 is e2m1, two in a byte, with a scale for a run of
columns. All products are taken in float32, where they are exact.
"""

from dataclasses import dataclass

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
LARGEST_E4M3 = 448.0
SMALLEST_AMAX = 1e-4  # of a block that is fake-quantised: below it, the scale no longer shrinks


def e8m0_scales(stored: torch.Tensor) -> torch.Tensor:
    """Stored as float8_e8m0fnu or as the bytes of it -> float32."""
    return stored.view(torch.float8_e8m0fnu).float()


def dequantize_fp8(
    weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]
) -> torch.Tensor:
    """weight [N, K] e4m3, scale [ceil(N / rows), ceil(K / columns)] -> [N, K] float32."""
    rows, columns = weight.shape
    height, width = min(block[0], rows), min(block[1], columns)
    spread = e8m0_scales(scale).repeat_interleave(height, 0).repeat_interleave(width, 1)
    return weight.float() * spread[:rows, :columns]


@dataclass(frozen=True, slots=True)
class Fp4Experts:
    """E matrices in FP4, as they lie in the file.

    packed [E, N, K / 2] uint8: the even column in the low half of a byte; scale [E, N, K / run]
    uint8.
    """

    packed: torch.Tensor
    scale: torch.Tensor

    def weight(self, expert: int, dtype: torch.dtype) -> torch.Tensor:
        """One matrix [N, K]."""
        packed, scale = self.packed[expert], e8m0_scales(self.scale[expert])
        codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).int()
        values = torch.tensor(E2M1, device=packed.device)[codes]
        runs = values.unflatten(-1, (scale.shape[-1], -1)) * scale.unsqueeze(-1)
        out: torch.Tensor = runs.flatten(-2).to(dtype)
        return out


def fake_quantize_e4m3(x: torch.Tensor, run: int) -> torch.Tensor:
    """x [..., D] as it would come back from e4m3 with a power of two for every `run` of D."""
    runs = x.float().unflatten(-1, (-1, run))
    largest = runs.abs().amax(-1, keepdim=True).clamp_min(SMALLEST_AMAX)
    mantissa, exponent = torch.frexp(largest / LARGEST_E4M3)
    exponent = exponent - (mantissa == 0.5).int()  # frexp gives 2^k as 0.5 · 2^(k+1)
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    stored = (runs / scale).clamp(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn)
    out: torch.Tensor = (stored.float() * scale).flatten(-2).to(x.dtype)
    return out
