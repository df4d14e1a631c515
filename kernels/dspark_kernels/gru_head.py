"""Domino's sequential head: a GRU over the chosen tokens corrects the logits of a block.

A step is the products of the GRU and of the projector, two small kernels between them, and then the
launches of sequential_head.py that add to the logits and choose.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dspark_kernels.backend import jit, next_power_of_2, tl, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.dependent_launch import launch_options, wait_for_previous
from dspark_kernels.noise import gumbel_reference
from dspark_kernels.quantized_weight import QuantizedWeight
from dspark_kernels.rounding import round_to
from dspark_kernels.sequential_head import BlockRun, DraftedBlock, SequentialHead
from dspark_kernels.sequential_head_kernels import sigmoid, tanh
from dspark_kernels.skinny_linear import skinny_linear

Weight = torch.Tensor | QuantizedWeight
BLOCK = 512


@dataclass(frozen=True, slots=True)
class GruHead:
    """embedding [V, H] of the target; of_token [3 G, H] and of_state [3 G, G], gates in the order
    reset, update, new; the projector's first map [r, H] of the hidden state and [r, G] of the
    GRU's, its second, w2 [V, r]. The first `prefix_length` drafts are not corrected."""

    embedding: torch.Tensor
    of_token: Weight
    of_state: Weight
    projector_of_hidden: Weight
    projector_of_state: Weight
    w2: Weight
    prefix_length: int


def gru_state_reference(
    of_token: torch.Tensor, of_state: torch.Tensor, state: torch.Tensor
) -> torch.Tensor:
    """Both products [R, 3 G] and the state [R, G] before -> the state after."""
    token, old = of_token.float().chunk(3, dim=-1), of_state.float().chunk(3, dim=-1)
    reset, update = ((t + s).sigmoid() for t, s in zip(token[:2], old[:2], strict=True))
    new = (token[2] + reset * old[2]).tanh()
    return ((1.0 - update) * new + update * state.float()).to(state.dtype)


def gru_state(of_token: torch.Tensor, of_state: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """As gru_state_reference."""
    if not use_triton(state):
        return gru_state_reference(of_token, of_state, state)
    num_rows, width = state.shape
    out, block = torch.empty_like(state), min(BLOCK, next_power_of_2(width))
    gru_state_kernel[(num_rows, -(-width // block))](
        of_token, of_state, state, out, width, BLOCK=block, **launch_options(state.device)
    )
    return out


def silu_of_sum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """SiLU of the sum of x [R, r], rows of a wider tensor, and y [R, r], in float32."""
    if not use_triton(y):
        return F.silu(x.float() + y.float()).to(y.dtype)
    num_rows, width = y.shape
    out, block = torch.empty_like(y), min(BLOCK, next_power_of_2(width))
    silu_of_sum_kernel[(num_rows, -(-width // block))](
        x, y, out, width, x.stride(0), BLOCK=block, **launch_options(y.device)
    )
    return out


class _Steps:
    """The GRU's states and the projector's features of a block."""

    def __init__(self, head: GruHead, hidden: torch.Tensor) -> None:
        self._head = head
        of_hidden = skinny_linear(hidden.flatten(0, 1), head.projector_of_hidden)
        self._of_hidden = of_hidden.unflatten(0, hidden.shape[:2])
        self._state = hidden.new_zeros(len(hidden), head.of_state.shape[1])

    def take(self, tokens: torch.Tensor) -> None:
        """The next tokens [R] of the texts."""
        head = self._head
        of_token = skinny_linear(head.embedding.index_select(0, tokens), head.of_token)
        of_state = skinny_linear(self._state, head.of_state)
        self._state = gru_state(of_token, of_state, self._state)

    def features(self, step: int) -> torch.Tensor:
        """[R, r]."""
        own = skinny_linear(self._state, self._head.projector_of_state)
        return silu_of_sum(self._of_hidden[:, step], own)


def gru_block(
    base_logits: torch.Tensor,
    hidden: torch.Tensor,
    anchors: torch.Tensor,
    head: GruHead,
    temperatures: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> DraftedBlock:
    """As draft_block."""
    drawn = (temperatures, seeds, positions)
    if not use_triton(base_logits):
        return gru_block_reference(base_logits, hidden, anchors, head, *drawn)
    none, steps = SequentialHead("none"), _Steps(head, hidden)
    run = BlockRun(base_logits.contiguous(), hidden, anchors, none, *drawn)
    for k in range(base_logits.shape[1]):
        run.features(k)
        steps.take(run.token_ids[:, k - 1] if k else anchors)
        if k < head.prefix_length:
            run.vocabulary(k, run.feature_rows, None)
        else:
            run.vocabulary(k, steps.features(k), head.w2)
    return run.ended()


def gru_block_reference(
    base_logits: torch.Tensor,
    hidden: torch.Tensor,
    anchors: torch.Tensor,
    head: GruHead,
    temperatures: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> DraftedBlock:
    """As draft_block_reference."""
    w2 = head.w2.dequantized(torch.float32) if isinstance(head.w2, QuantizedWeight) else head.w2
    steps, previous, is_greedy = _Steps(head, hidden), anchors, temperatures == 0
    scale = torch.where(is_greedy, 1.0, temperatures).unsqueeze(1)
    ids, all_logits, log_sums = [], [], []
    for k in range(base_logits.shape[1]):
        logits = base_logits[:, k].float()
        steps.take(previous)
        if k >= head.prefix_length:
            logits = logits + steps.features(k).float() @ w2.float().t()
        scaled = logits / scale
        noise = gumbel_reference(seeds, positions + k + 1, logits.shape[1])
        previous = torch.where(is_greedy.unsqueeze(1), scaled, scaled + noise).argmax(-1)
        ids.append(previous)
        all_logits.append(logits)
        log_sums.append(scaled.logsumexp(-1))
    return DraftedBlock(
        torch.stack(ids, 1), torch.stack(all_logits, 1), torch.stack(log_sums, 1), None
    )


@jit
def gru_state_kernel(
    of_token: tl.tensor,  # [R, 3 width]
    of_state: tl.tensor,  # [R, 3 width]
    state: tl.tensor,  # [R, width]
    out: tl.tensor,  # [R, width]
    width: tl.tensor,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    wait_for_previous(DEPENDENT)
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    at = row * 3 * width + column
    reset = tl.load(of_token + at, mask=inside, other=0.0).to(tl.float32)
    reset += tl.load(of_state + at, mask=inside, other=0.0).to(tl.float32)
    update = tl.load(of_token + at + width, mask=inside, other=0.0).to(tl.float32)
    update += tl.load(of_state + at + width, mask=inside, other=0.0).to(tl.float32)
    new = tl.load(of_state + at + 2 * width, mask=inside, other=0.0).to(tl.float32)
    new = tl.load(of_token + at + 2 * width, mask=inside, other=0.0).to(tl.float32) + (
        sigmoid(reset) * new
    )
    old = tl.load(state + row * width + column, mask=inside, other=0.0).to(tl.float32)
    update = sigmoid(update)
    value = (1.0 - update) * tanh(new) + update * old
    rounded = round_to(value, out.dtype.element_ty)
    tl.store(out + row * width + column, rounded, mask=inside)


@jit
def silu_of_sum_kernel(
    x: tl.tensor,  # rows of width, x_stride apart
    y: tl.tensor,  # [R, width]
    out: tl.tensor,  # [R, width]
    width: tl.tensor,
    x_stride: tl.tensor,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    wait_for_previous(DEPENDENT)
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(y + row * width + column, mask=inside, other=0.0).to(tl.float32)
    rounded = round_to(value * sigmoid(value), out.dtype.element_ty)
    tl.store(out + row * width + column, rounded, mask=inside)


def builds() -> list[KernelBuild]:
    kernels = []
    sizes = {"BLOCK": BLOCK, "DEPENDENT": True}
    for element in ("bf16", "fp32"):
        rows = {name: f"*{element}" for name in ("of_token", "of_state", "state", "out")}
        signature = {**rows, "width": "i32"}
        kernels.append(KernelBuild(f"gru state {element}", gru_state_kernel, signature, sizes))
        rows = {name: f"*{element}" for name in ("x", "y", "out")}
        signature = {**rows, "width": "i32", "x_stride": "i32"}
        kernels.append(KernelBuild(f"silu of sum {element}", silu_of_sum_kernel, signature, sizes))
    return kernels
