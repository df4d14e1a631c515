"""The operations of decoders with routed experts in torch, to the bit."""

import torch

from dspark_kernels.cpu.exact import fma
from dspark_kernels.cpu.float_text import LANES, exp, tree_sum

ALPHA = 1.702  # of gpt-oss's gate


def softmax_route(
    logits: torch.Tensor, bias: torch.Tensor, top: int, *, of_all: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits, bias [N, E], [E] -> the `top` likeliest experts int64 [N, k], the first of equal ones
    first, and their shares [N, k]: of all experts, or of the chosen ones."""
    scores = logits + bias
    values, order = scores.sort(dim=1, descending=True, stable=True)
    powers = exp(values[:, :top] - values[:, :1])
    if of_all:
        every = torch.nn.functional.pad(exp(scores - values[:, :1]), (0, -scores.shape[1] % LANES))
        lanes = torch.zeros(len(scores), LANES)
        for chunk in every.split(LANES, dim=1):
            lanes = lanes + chunk
        total = tree_sum(lanes)
    else:
        total = torch.zeros(len(scores))
        for power in powers.unbind(1):
            total = total + power
    return order[:, :top], powers / total.unsqueeze(1)


def oss_gated(gate_up: torch.Tensor, bias: torch.Tensor, limit: float) -> torch.Tensor:
    """Of numbers by turns, [..., 2 I] -> [..., I]: (up + 1) gate sigmoid(ALPHA gate), clamped."""
    gate, up = (gate_up + bias).unflatten(-1, (-1, 2)).unbind(-1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    out: torch.Tensor = (up + 1.0) * (gate / (1.0 + exp(-(gate * ALPHA))))
    return out


def halves_gated(gate_up: torch.Tensor) -> torch.Tensor:
    """[..., 2 I] -> [..., I]: silu(gate) up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return gate / (1.0 + exp(-gate)) * up


def routed_sum(said: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """said [N, k, H], shares [N, k] -> [N, H], in the order of the route."""
    total = torch.zeros_like(said[:, 0])
    for place in range(said.shape[1]):
        total = fma(said[:, place], shares[:, place, None], total)
    return total
