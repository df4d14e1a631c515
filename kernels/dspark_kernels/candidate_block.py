"""DFlash 2's choice of a block's tokens among a few candidates each, on the device.

A candidate's score is its logit and a product of three: a row of the table of predecessors, by the
token before, the projected hidden state, and the candidate's row of the table of successors. Drafts
are drawn from the candidates' scores alone, so any other token's logit is minus infinity.
"""

from dataclasses import dataclass

import torch

from dspark_kernels.backend import jit, next_power_of_2, tl, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.dependent_launch import launch_options, wait_for_previous
from dspark_kernels.noise import gumbel_at, gumbel_reference
from dspark_kernels.sequential_head import DraftedBlock
from dspark_kernels.skinny_linear import skinny_linear


@dataclass(frozen=True, slots=True)
class CandidateHead:
    """hidden_projection [r, H], the tables of predecessors and successors [V, r], and the number of
    candidates."""

    hidden_projection: torch.Tensor
    predecessors: torch.Tensor
    successors: torch.Tensor
    num_candidates: int


def candidate_block(
    logits: torch.Tensor,
    hidden: torch.Tensor,
    anchors: torch.Tensor,
    head: CandidateHead,
    temperatures: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> DraftedBlock:
    """As draft_block, of logits [R, K, V]."""
    count = min(head.num_candidates, logits.shape[-1])
    unary, candidates = logits.topk(count, dim=-1)
    projected = skinny_linear(hidden.flatten(0, 1), head.hidden_projection)
    projected = projected.unflatten(0, hidden.shape[:2])
    drawn = (anchors, temperatures, seeds, positions)
    if not use_triton(logits):
        return walk_reference(unary, candidates, projected, head, *drawn)
    num_requests, num_steps, num_tokens = logits.shape
    out = torch.full_like(logits, float("-inf"), dtype=torch.float32)
    token_ids = torch.empty(num_requests, num_steps, device=logits.device, dtype=torch.int64)
    log_sums = torch.empty(num_requests, num_steps, device=logits.device, dtype=torch.float32)
    rank = head.successors.shape[1]
    walk_kernel[(num_requests,)](
        unary.contiguous(),
        candidates.contiguous(),
        projected.contiguous(),
        head.predecessors,
        head.successors,
        *drawn,
        out,
        token_ids,
        log_sums,
        num_steps,
        num_tokens,
        COUNT=count,
        BLOCK_COUNT=next_power_of_2(count),
        RANK=rank,
        BLOCK_RANK=next_power_of_2(rank),
        **launch_options(logits.device),
    )
    return DraftedBlock(token_ids, out, log_sums, None)


def walk_reference(
    unary: torch.Tensor,
    candidates: torch.Tensor,
    projected: torch.Tensor,
    head: CandidateHead,
    anchors: torch.Tensor,
    temperatures: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> DraftedBlock:
    """unary logits and candidates [R, K, C], projected [R, K, r], the rest [R]; draft k is at place
    position + k + 1. Temperature 0 takes the best candidate, the first of equal ones."""
    num_tokens, previous, is_greedy = len(head.successors), anchors, temperatures == 0
    scale = torch.where(is_greedy, 1.0, temperatures).unsqueeze(1)
    ids, all_logits, log_sums = [], [], []
    for k in range(unary.shape[1]):
        known = candidates[:, k]
        context = head.predecessors[previous].float() * projected[:, k].float()
        scores = (head.successors[known].float() @ context.unsqueeze(-1)).squeeze(-1)
        scores = scores + unary[:, k].float()
        scaled = scores / scale
        noise = gumbel_reference(seeds, positions + k + 1, num_tokens).gather(1, known)
        picked = torch.where(is_greedy.unsqueeze(1), scaled, scaled + noise).argmax(-1)
        previous = known.gather(1, picked.unsqueeze(1)).squeeze(1)
        everywhere = torch.full((len(known), num_tokens), float("-inf"), device=known.device)
        ids.append(previous)
        all_logits.append(everywhere.scatter(1, known, scores))
        log_sums.append(scaled.logsumexp(-1))
    return DraftedBlock(
        torch.stack(ids, 1), torch.stack(all_logits, 1), torch.stack(log_sums, 1), None
    )


@jit
def walk_kernel(
    unary: tl.tensor,  # [R, K, COUNT]
    candidates: tl.tensor,  # [R, K, COUNT]
    projected: tl.tensor,  # [R, K, RANK]
    predecessors: tl.tensor,  # [V, RANK]
    successors: tl.tensor,  # [V, RANK]
    anchors: tl.tensor,
    temperatures: tl.tensor,
    seeds: tl.tensor,
    positions: tl.tensor,
    logits: tl.tensor,  # [R, K, V]
    token_ids: tl.tensor,  # [R, K]
    log_sums: tl.tensor,  # [R, K]
    num_steps: tl.tensor,
    num_tokens: tl.tensor,
    COUNT: tl.constexpr,
    BLOCK_COUNT: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """A whole block of one request a program."""
    wait_for_previous(DEPENDENT)
    request = tl.program_id(0)
    place = tl.arange(0, BLOCK_COUNT)
    column = tl.arange(0, BLOCK_RANK)
    known, inside = place < COUNT, column < RANK
    temperature = tl.load(temperatures + request)
    seed, position = tl.load(seeds + request), tl.load(positions + request)
    previous = tl.load(anchors + request)
    for step in range(num_steps):
        row = request * num_steps + step
        token = tl.load(candidates + row * COUNT + place, mask=known, other=0)
        before = tl.load(predecessors + previous * RANK + column, mask=inside, other=0.0)
        own = tl.load(projected + row * RANK + column, mask=inside, other=0.0)
        context = before.to(tl.float32) * own.to(tl.float32)
        table = tl.load(
            successors + token[:, None] * RANK + column[None, :],
            mask=known[:, None] & inside[None, :],
            other=0.0,
        )
        score = tl.load(unary + row * COUNT + place, mask=known, other=0.0).to(tl.float32)
        score += tl.sum(table.to(tl.float32) * context[None, :], axis=1)
        tl.store(logits + row.to(tl.int64) * num_tokens + token, score, mask=known)
        scaled = score / tl.where(temperature == 0, 1.0, temperature)
        scaled = tl.where(known, scaled, float("-inf"))
        raced = scaled
        if temperature > 0:
            raced = scaled + gumbel_at(seed, position + step + 1, token)
        best = tl.max(raced, axis=0)
        picked = tl.min(tl.where(known & (raced == best), place, COUNT - 1), axis=0)
        previous = tl.sum(tl.where(place == picked, token, 0), axis=0)
        largest = tl.max(scaled, axis=0)
        log_sum = largest + tl.log(tl.sum(tl.exp(scaled - largest), axis=0))
        tl.store(token_ids + row, previous)
        tl.store(log_sums + row, log_sum)


def builds() -> list[KernelBuild]:
    kernels = []
    numbers = ("unary", "projected", "predecessors", "successors")
    integers = ("candidates", "anchors", "seeds", "positions", "token_ids")
    for element in ("bf16", "fp32"):
        signature = dict.fromkeys(numbers, f"*{element}") | dict.fromkeys(integers, "*i64")
        signature |= dict.fromkeys(("temperatures", "logits", "log_sums"), "*fp32")
        signature |= {"num_steps": "i32", "num_tokens": "i32"}
        sizes = {"COUNT": 16, "BLOCK_COUNT": 16, "RANK": 256, "BLOCK_RANK": 256}
        build = KernelBuild(
            f"candidates {element}", walk_kernel, signature, {**sizes, "DEPENDENT": True}
        )
        kernels.append(build)
    return kernels
