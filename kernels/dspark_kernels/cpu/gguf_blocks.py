"""The blocks of a GGUF file taken apart: natural codes and factors, exactly as they are stored."""

from typing import NamedTuple

import torch

from dspark_kernels.cpu.formats import FORMATS, SUPER


class Parts(NamedTuple):
    """codes uint8 [N, K], with the format's offset; of G = K / 32 groups: factors and leasts half
    [N, G], or of a K-quant uint8 (int8) [N, G · parts], and for them half [N, G / 8]."""

    codes: torch.Tensor
    factors: torch.Tensor
    leasts: torch.Tensor | None
    super_factors: torch.Tensor | None
    super_leasts: torch.Tensor | None


def take_apart(kind: str, blocks: torch.Tensor) -> Parts:
    """blocks uint8 [N, bytes per row]. Raises ValueError if one is incomplete or not finite."""
    size = FORMATS[kind].block_bytes
    if blocks.dtype != torch.uint8 or blocks.dim() != 2 or blocks.shape[1] % size:
        raise ValueError(f"{kind} rows are whole blocks of {size} bytes, not {list(blocks.shape)}")
    block_parts = _READERS[kind](blocks.unflatten(1, (-1, size)))
    for halves in (
        block_parts.factors,
        block_parts.leasts,
        block_parts.super_factors,
        block_parts.super_leasts,
    ):
        if halves is not None and halves.dtype == torch.float16 and not halves.isfinite().all():
            raise ValueError(f"{kind} weights with scales that are not finite")
    return block_parts


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """float16 [N, B] of the two bytes at `at` of each block."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16).squeeze(-1)


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [..., n] -> [..., 2 n]: all low halves, then all high ones."""
    out: torch.Tensor = torch.cat([packed & 15, packed >> 4], dim=-1)
    return out


def _fifth_bits(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [..., 4] -> 0 or 16 for each of 32 codes."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return ((packed.unsqueeze(-1) >> shifts & 1) << 4).flatten(-2)


def _q4_0(blocks: torch.Tensor) -> Parts:
    return Parts(_nibbles(blocks[..., 2:]).flatten(1), _half(blocks, 0), None, None, None)


def _q4_1(blocks: torch.Tensor) -> Parts:
    codes = _nibbles(blocks[..., 4:]).flatten(1)
    return Parts(codes, _half(blocks, 0), _half(blocks, 2), None, None)


def _q5_0(blocks: torch.Tensor) -> Parts:
    codes = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])
    return Parts(codes.flatten(1), _half(blocks, 0), None, None, None)


def _q5_1(blocks: torch.Tensor) -> Parts:
    codes = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return Parts(codes.flatten(1), _half(blocks, 0), _half(blocks, 2), None, None)


def _q8_0(blocks: torch.Tensor) -> Parts:
    return Parts((blocks[..., 2:] ^ 128).flatten(1), _half(blocks, 0), None, None, None)


def _six_bits(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [..., 12] -> factors and leasts of eight groups."""
    factor, least, rest = packed.split(4, dim=-1)
    factors = torch.cat([factor & 63, (rest & 15) | (factor >> 2 & 48)], dim=-1)
    leasts = torch.cat([least & 63, (rest >> 4) | (least >> 2 & 48)], dim=-1)
    return factors.flatten(1), leasts.flatten(1)


def _groups_of_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [N, B, 128] -> codes [N, B, 8, 32]: each 32 bytes hold two groups."""
    halves = _nibbles(packed.unflatten(-1, (4, 32)))
    out: torch.Tensor = halves.unflatten(-1, (2, 32)).flatten(2, 3)
    return out


def _q4_k(blocks: torch.Tensor) -> Parts:
    factors, leasts = _six_bits(blocks[..., 4:16])
    codes = _groups_of_nibbles(blocks[..., 16:]).flatten(1)
    return Parts(codes, factors, leasts, _half(blocks, 0), _half(blocks, 2))


def _q5_k(blocks: torch.Tensor) -> Parts:
    factors, leasts = _six_bits(blocks[..., 4:16])
    shifts = torch.arange(SUPER, dtype=torch.uint8).unsqueeze(-1)
    fifth = (blocks[..., None, 16:48] >> shifts & 1) << 4  # [N, B, 8, 32]
    codes = (_groups_of_nibbles(blocks[..., 48:]) | fifth).flatten(1)
    return Parts(codes, factors, leasts, _half(blocks, 0), _half(blocks, 2))


def _q6_k(blocks: torch.Tensor) -> Parts:
    low = _nibbles(blocks[..., :128].unflatten(-1, (2, 64)))  # [N, B, 2, 128]
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8).unsqueeze(-1)
    high = blocks[..., 128:192].unflatten(-1, (2, 1, 32)) >> shifts & 3  # [N, B, 2, 4, 32]
    codes = (low | high.flatten(-2) << 4).flatten(1)
    factors = blocks[..., 192:208].contiguous().view(torch.int8).flatten(1)
    return Parts(codes, factors, None, _half(blocks, 208), None)


_READERS = {
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q8_0": _q8_0,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}
