"""The beginning of the residual stream: rows of the embedding, and the first norm over them."""

from dataclasses import dataclass
from typing import Any

import torch

from dspark_kernels.backend import jit, next_power_of_2, tl, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.dependent_launch import launch_options, wait_for_previous
from dspark_kernels.norm import normed_row, rms_norm, warps_of_a_row
from dspark_kernels.residual_stream import ResidualStream
from dspark_kernels.rounding import round_to


@dataclass(frozen=True, slots=True)
class EmbeddedBlocks:
    """Rows of `table` [V, H] for blocks of tokens: each of `first` [R], behind it its row of `rest`
    [R, K] of any strides; None for blocks of one token. N = R * (K + 1). All are times `scale`."""

    table: torch.Tensor
    first: torch.Tensor
    rest: torch.Tensor | None = None
    scale: float = 1.0

    @property
    def size(self) -> int:
        """Tokens of a block."""
        return 1 + (0 if self.rest is None else self.rest.shape[1])

    @property
    def num_rows(self) -> int:
        return len(self.first) * self.size

    def token_ids(self) -> torch.Tensor:
        """[N]."""
        if self.rest is None:
            return self.first
        return torch.cat([self.first.unsqueeze(1), self.rest], dim=1).flatten()

    def normed(
        self, weight: torch.Tensor, eps: float, tap: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ResidualStream]:
        """As ResidualStream.normed."""
        if not use_triton(self.table, weight):
            total = self.table[self.token_ids()]
            total = total if self.scale == 1.0 else total * self.scale
            return rms_norm(total, weight, eps, tap), ResidualStream(total)
        width = self.table.shape[1]
        total, out = self.table.new_empty(2, self.num_rows, width)
        rest, block = self.rest, next_power_of_2(width)
        embedded_blocks_kernel[(self.num_rows,)](
            self.table,
            self.first.contiguous(),
            rest,
            weight,
            total,
            out,
            tap,
            eps,
            self.size,
            0 if rest is None else rest.stride(0),
            0 if rest is None else rest.stride(1),
            0 if tap is None else tap.stride(0),
            WIDTH=width,
            BLOCK=block,
            SCALE=self.scale,
            HAS_REST=rest is not None,
            HAS_TAP=tap is not None,
            num_warps=warps_of_a_row(block),
            **launch_options(self.table.device),
        )
        return out, ResidualStream(total)


@jit
def embedded_blocks_kernel(
    table: tl.tensor,  # [V, WIDTH]
    first: tl.tensor,  # [R]
    rest: tl.tensor,  # [R, size - 1]
    weight: tl.tensor,
    total: tl.tensor,  # [R * size, WIDTH]
    out: tl.tensor,
    tap: tl.tensor,
    eps: tl.tensor,
    size: tl.tensor,
    block_stride: tl.tensor,
    token_stride: tl.tensor,
    tap_stride: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALE: tl.constexpr,
    HAS_REST: tl.constexpr,
    HAS_TAP: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One row a program, normed as rms_norm_kernel norms it."""
    wait_for_previous(DEPENDENT)
    dtype = out.dtype.element_ty
    row = tl.program_id(0)
    block, place = row // size, row % size
    token = tl.load(first + block)
    if HAS_REST:
        at = rest + block * block_stride + tl.maximum(place - 1, 0) * token_stride
        token = tl.where(place == 0, token, tl.load(at))
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    source = table + token.to(tl.int64) * WIDTH + column
    embedding = tl.load(source, mask=inside, other=0.0)
    if SCALE != 1.0:
        embedding = round_to(embedding.to(tl.float32) * SCALE, dtype)
    at = row.to(tl.int64) * WIDTH + column
    tl.store(total + at, embedding, mask=inside)
    if HAS_TAP:
        tl.store(tap + row.to(tl.int64) * tap_stride + column, embedding, mask=inside)
    values = embedding.to(tl.float32)
    tl.store(out + at, normed_row(values, weight, column, eps, WIDTH, dtype), mask=inside)


def builds() -> list[KernelBuild]:
    kernels = []
    strides = ("size", "block_stride", "token_stride", "tap_stride")
    for width, dtype, has_rest in (
        (2560, "bf16", True),
        (4096, "bf16", False),
        (5120, "fp32", True),
    ):
        block = next_power_of_2(width)
        signature = {name: f"*{dtype}" for name in ("table", "weight", "total", "out")}
        signature |= {"first": "*i64", "eps": "fp32"} | dict.fromkeys(strides, "i32")
        constexprs: dict[str, Any] = {
            "WIDTH": width,
            "BLOCK": block,
            "HAS_REST": has_rest,
            "HAS_TAP": has_rest,
        }
        constexprs |= {"DEPENDENT": True, "SCALE": 1.0}
        absent = {} if has_rest else {"rest": None, "tap": None}
        signature |= {"rest": "*i64", "tap": f"*{dtype}"} if has_rest else {}
        kernels.append(
            KernelBuild(
                f"embedded blocks {dtype} {width}",
                embedded_blocks_kernel,
                signature,
                constexprs | absent,
                num_warps=warps_of_a_row(block),
            )
        )
    return kernels
