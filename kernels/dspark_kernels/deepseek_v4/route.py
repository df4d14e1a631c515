"""Which experts V4's rows take, as route_rows of cpu/deepseek_v4, and what of them is on the card.

Segments are the distinct experts of a pass, in their order: the slot of each (-1: not on the card),
where its pairs of row and expert begin, and how many they are.
"""

from typing import NamedTuple

import torch

from dspark_kernels.backend import jit, next_power_of_2, tl, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.cpu.deepseek_v4 import routing_text
from dspark_kernels.deepseek_v4.exact_math import UNFUSED, constant, exp
from dspark_kernels.deepseek_v4.places import ROW_WORDS, TOKEN

NEVER_ZERO = tl.constexpr(routing_text.NEVER_ZERO)
LOGARITHM = tl.constexpr(tuple(routing_text.LOGARITHM))
NUM_TERMS = tl.constexpr(len(routing_text.LOGARITHM))
MOST_PAIRS = 4096  # that one program groups
SEGMENT_WORDS = 4  # slot, first pair, pairs, expert
WORDS = tl.constexpr(SEGMENT_WORDS)


class Segments(NamedTuple):
    """words int32 [most segments, SEGMENT_WORDS], unused ones without pairs; pair_rows int32
    [pairs], by place; places int32 [N, k], of the pairs of each row."""

    words: torch.Tensor
    pair_rows: torch.Tensor
    places: torch.Tensor

    def of(self, num_rows: int) -> "Segments":
        """For fewer rows, in the same memory."""
        pairs = num_rows * self.places.shape[1]
        return Segments(self.words[:pairs], self.pair_rows[:pairs], self.places[:num_rows])


def empty_segments(num_rows: int, top: int, num_experts: int, device: torch.device) -> Segments:
    pairs = num_rows * top
    return Segments(
        torch.empty(min(pairs, num_experts), SEGMENT_WORDS, dtype=torch.int32, device=device),
        torch.empty(pairs, dtype=torch.int32, device=device),
        torch.empty(num_rows, top, dtype=torch.int32, device=device),
    )


def route_rows(
    logits: torch.Tensor,
    rows: torch.Tensor,
    biases: torch.Tensor | None,
    by_token: torch.Tensor | None,
    scale: float,
    experts: torch.Tensor,
    shares: torch.Tensor,
) -> None:
    """logits [N, E] -> experts int64 [N, k] and shares [N, k]: the best by score and bias [E], or
    those of the row's token, int64 [V, k]."""
    num_experts, top = logits.shape[1], experts.shape[1]
    route_kernel[(len(logits),)](
        logits,
        rows,
        biases,
        by_token,
        experts,
        shares,
        scale,
        EXPERTS=num_experts,
        TOP=top,
        BLOCK=next_power_of_2(num_experts),
        TOP_BLOCK=next_power_of_2(top),
        num_warps=4,
        **UNFUSED,
    )


def group_experts(experts: torch.Tensor, slots: torch.Tensor, out: Segments) -> None:
    """experts int64 [N, k], slots int32 [E] of their layer."""
    is_many = experts.numel() > MOST_PAIRS  # as of a long prompt
    if is_many or not use_triton(torch.empty(0, device=slots.device)):
        return group_experts_reference(experts, slots, out)
    pairs, num_experts = experts.numel(), len(slots)
    starts = torch.empty(num_experts, dtype=torch.int32, device=slots.device)
    group_experts_kernel[(1,)](
        experts,
        slots,
        out.words,
        out.pair_rows,
        out.places,
        starts,
        pairs,
        len(out.words),
        EXPERTS=num_experts,
        TOP=experts.shape[1],
        BLOCK=next_power_of_2(num_experts),
        PAIR_BLOCK=next_power_of_2(pairs),
        num_warps=8,
        **UNFUSED,
    )


def group_experts_reference(experts: torch.Tensor, slots: torch.Tensor, out: Segments) -> None:
    """As group_experts, in torch."""
    pairs = experts.flatten()
    order = pairs.argsort(stable=True)
    found, counts = pairs[order].unique_consecutive(return_counts=True)
    out.words.zero_()
    words = torch.stack([slots[found].long(), counts.cumsum(0) - counts, counts, found], dim=1)
    out.words[: len(found)] = words.int()
    out.pair_rows.copy_(order // experts.shape[1])
    out.places.view(-1)[order] = torch.arange(len(order), dtype=torch.int32, device=slots.device)


@jit
def route_kernel(
    logits: tl.tensor,  # [N, EXPERTS]
    rows: tl.tensor,  # [N, words]
    biases: tl.tensor,  # [EXPERTS]
    by_token: tl.tensor,  # [V, TOP]
    experts: tl.tensor,  # [N, TOP]
    shares: tl.tensor,  # [N, TOP]
    scale: tl.tensor,
    EXPERTS: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
    TOP_BLOCK: tl.constexpr,
) -> None:
    """A row."""
    row = tl.program_id(0).to(tl.int64)
    expert, slot = tl.arange(0, BLOCK), tl.arange(0, TOP_BLOCK)
    inside = expert < EXPERTS
    score = _score(tl.load(logits + row * EXPERTS + expert, mask=inside, other=0.0))
    rank = score
    if biases is not None:
        rank = score + tl.load(biases + expert, mask=inside, other=0.0)
    rank = tl.where(inside, rank, float("-inf"))
    token = tl.load(rows + row * ROW_WORDS + TOKEN)
    share = tl.zeros((TOP_BLOCK,), tl.float32)
    total = 0.0
    for place in tl.static_range(TOP):
        if by_token is not None:
            chosen = tl.load(by_token + token * TOP + place)
        else:
            first = tl.min(tl.where(rank == tl.max(rank, axis=0), expert, EXPERTS), axis=0)
            chosen = tl.where(first < EXPERTS, first, 0).to(tl.int64)  # none where all are NaN
            rank = tl.where(expert == chosen, float("-inf"), rank)
        mine = tl.sum(tl.where(expert == chosen, score, 0.0), axis=0)
        tl.store(experts + row * TOP + place, chosen)
        share = tl.where(slot == place, mine, share)
        total = total + mine
    total = total + NEVER_ZERO
    share = tl.div_rn(share, tl.zeros_like(share) + total) * scale
    tl.store(shares + row * TOP + slot, share, mask=slot < TOP)


@jit
def _score(x: tl.tensor) -> tl.tensor:
    """sqrt(softplus(x)), by the recipe of routing_text."""
    is_positive = x > 0.0
    power = exp(tl.where(is_positive, -x, x))
    part = tl.div_rn(power, power + 2.0)
    square = part * part
    total = constant(x, LOGARITHM[0])
    for index in tl.static_range(1, NUM_TERMS):
        total = tl.fma(total, square, constant(x, LOGARITHM[index]))
    twice = (part + part) * total
    return tl.sqrt_rn(tl.where(is_positive, x, 0.0) + twice)


@jit
def group_experts_kernel(
    experts: tl.tensor,  # [pairs]
    slots: tl.tensor,  # [EXPERTS]
    words: tl.tensor,  # [num_words, WORDS]
    pair_rows: tl.tensor,  # [pairs]
    places: tl.tensor,  # [pairs]
    starts: tl.tensor,  # [EXPERTS]
    pairs: tl.tensor,
    num_words: tl.tensor,
    EXPERTS: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIR_BLOCK: tl.constexpr,
) -> None:
    """All of a pass: one program."""
    expert, pair = tl.arange(0, BLOCK), tl.arange(0, PAIR_BLOCK)
    inside = pair < pairs
    mine = tl.load(experts + pair, mask=inside, other=-1).to(tl.int32)
    for word in tl.static_range(WORDS):
        tl.store(words + pair * WORDS + word, 0, mask=pair < num_words)
    count = tl.zeros((BLOCK,), tl.int32)
    before = tl.zeros((PAIR_BLOCK,), tl.int32)
    for other in range(pairs):
        theirs = tl.load(experts + other).to(tl.int32)
        count += (expert == theirs).to(tl.int32)
        before += ((mine == theirs) & (other < pair)).to(tl.int32)
    start = tl.cumsum(count, axis=0) - count
    is_used = count > 0
    segment = tl.cumsum(is_used.to(tl.int32), axis=0) - 1
    tl.store(starts + expert, start, mask=expert < EXPERTS)
    slot = tl.load(slots + expert, mask=expert < EXPERTS, other=-1)
    tl.debug_barrier()  # what was cleared, and the starts
    at = words + segment * WORDS
    tl.store(at, slot, mask=is_used)
    tl.store(at + 1, start, mask=is_used)
    tl.store(at + 2, count, mask=is_used)
    tl.store(at + 3, expert, mask=is_used)
    place = tl.load(starts + mine, mask=inside, other=0) + before
    tl.store(places + pair, place, mask=inside)
    tl.store(pair_rows + place, pair // TOP, mask=inside)


def builds() -> list[KernelBuild]:
    routing = {"logits": "*fp32", "rows": "*i64", "experts": "*i64", "shares": "*fp32"}
    routing |= {"scale": "fp32"}
    sizes: dict[str, int | None] = {"EXPERTS": 256, "TOP": 6, "BLOCK": 256, "TOP_BLOCK": 8}
    grouping = dict.fromkeys(("slots", "words", "pair_rows", "places", "starts"), "*i32")
    grouping |= {"experts": "*i64", "pairs": "i32", "num_words": "i32"}
    of_pairs = {"EXPERTS": 256, "TOP": 6, "BLOCK": 256}
    return [
        KernelBuild(
            "v4 route", route_kernel, routing | {"biases": "*fp32"}, sizes | {"by_token": None},
            fuses=False,
        ),
        KernelBuild(
            "v4 route by token", route_kernel, routing | {"by_token": "*i64"},
            sizes | {"biases": None}, fuses=False,
        ),
        *(
            KernelBuild(
                f"v4 group experts {pairs}", group_experts_kernel, grouping,
                of_pairs | {"PAIR_BLOCK": pairs}, num_warps=8, fuses=False,
            )
            for pairs in (8, 512)
        ),
    ]  # fmt: skip
