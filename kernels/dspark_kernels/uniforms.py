"""The uniform numbers of acceptance tests and draws: of seed, position and index alone."""

import torch

from dspark_kernels.backend import jit, next_power_of_2, tl, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.noise import GROUP, UNIFORM_STREAM, uniform_reference, words


def uniforms(seeds: torch.Tensor, positions: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """seeds, positions [R] int64 -> float32 in the shape of `like` [R, K], from 0 up to 1."""
    if not use_triton(like):
        return uniforms_reference(seeds, positions, like)
    out = torch.empty_like(like, dtype=torch.float32)
    count = like.shape[1]
    block = max(GROUP.value, next_power_of_2(count))
    uniforms_kernel[(len(seeds),)](seeds, positions, out, count, BLOCK=block)
    return out


def uniforms_reference(
    seeds: torch.Tensor, positions: torch.Tensor, like: torch.Tensor
) -> torch.Tensor:
    """As uniforms, in torch."""
    return uniform_reference(seeds, positions, like.shape[1])


@jit
def uniforms_kernel(
    seeds: tl.tensor,  # [R]
    positions: tl.tensor,
    out: tl.tensor,  # [R, count]
    count: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    request = tl.program_id(0)
    index = tl.arange(0, BLOCK)
    seed, position = tl.load(seeds + request), tl.load(positions + request)
    bits = words(seed, position, position.to(tl.int32) * 0, UNIFORM_STREAM, BLOCK)
    number = (bits >> 8).to(tl.float32) * 5.960464477539063e-08
    tl.store(out + request * count + index, number, mask=index < count)


def builds() -> list[KernelBuild]:
    signature = {"seeds": "*i64", "positions": "*i64", "out": "*fp32", "count": "i32"}
    return [KernelBuild("uniforms", uniforms_kernel, signature, {"BLOCK": 8})]
