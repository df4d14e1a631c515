"""The end of a round for all requests at once: filters, acceptance tests, the next token.

`row_kernel` reduces a target's row in parts (to the likeliest token, or cut and mass of the
distribution that top-k and top-p leave), `race_kernel` draws each row's token for requests with a
seed, `mass_kernel` does the tests and sums in blocks the weights of the next token's draw,
`draw_kernel` draws it. Nothing comes back to the host in between.
"""

from typing import NamedTuple

import torch

from dspark_kernels.accept_block_kernels import (
    draw_kernel,
    mass_kernel,
    race_kernel,
    row_kernel,
)
from dspark_kernels.backend import next_power_of_2, use_triton
from dspark_kernels.builds import KernelBuild
from dspark_kernels.dependent_launch import launch_options
from dspark_kernels.last_arriver import arrival_counters
from dspark_kernels.noise import GROUP, gumbel_row
from dspark_kernels.sampling import probabilities, race

BLOCK_ROW = 2048
ROW_SPAN = 4096  # tokens of a row that one program reduces
BLOCK_MASS = 128
ROW_REGISTERS = 168  # stated, because ptxas otherwise targets fewer than the row kernel needs


class Filters(NamedTuple):
    """How each request samples, [R] each: temperature (0: greedy), top_k (0: all), top_p."""

    temperature: torch.Tensor  # float32
    top_k: torch.Tensor  # int32
    top_p: torch.Tensor  # float32


class Races(NamedTuple):
    """The requests that draw every token by its noise, [R] each: then a draft is accepted if it is
    the token that the target draws itself. None of those is greedy."""

    is_seeded: torch.Tensor  # bool
    seeds: torch.Tensor  # int64


def is_sound(logits: torch.Tensor) -> torch.Tensor:
    """logits [N, V] -> [N] bool: whether a token can come from a row. NaN and infinity forbid it,
    and a row that forbids every token."""
    return logits.amax(dim=-1).isfinite()


class AcceptedBlock(NamedTuple):
    """Per request: drafts kept, the token after them, the new number of committed tokens [R];
    tokens [R, K + 1], of which the first num_accepted + 1 count. num_accepted is -1 where the row
    that a token comes from is no distribution (`is_sound`); the rest then means nothing."""

    num_accepted: torch.Tensor
    next_ids: torch.Tensor
    lengths: torch.Tensor
    tokens: torch.Tensor


def accept_block_reference(
    draft_ids: torch.Tensor,
    draft_logits: torch.Tensor,
    draft_log_sums: torch.Tensor,
    target_logits: torch.Tensor,
    first_rows: torch.Tensor,
    num_drafts: torch.Tensor,
    filters: Filters,
    races: Races,
    uniforms: torch.Tensor,
    lengths: torch.Tensor,
) -> AcceptedBlock:
    """draft_ids [R, K]; draft_logits [R, K, V] and draft_log_sums [R, K] as DraftedBlock has them.

    Of request r, target_logits [N, V] has rows first_rows[r] .. + num_drafts[r]. uniforms
    [R, K + 1] float32: one for each test, the last for the draw. lengths [R] int64 before the
    round, which are the anchors' places: row 0 yields the token of the place after.
    """
    num_accepted, next_ids = [], []
    for r, count in enumerate(num_drafts.tolist()):
        first = int(first_rows[r])
        rows = target_logits[first : first + count + 1].float()
        temperature, top_k, top_p = (f[r].item() for f in filters)
        ids = draft_ids[r, :count]
        sound = is_sound(rows)
        if temperature == 0 or races.is_seeded[r]:
            seed, place = int(races.seeds[r]), int(lengths[r]) + 1
            choices = rows.argmax(-1)
            if races.is_seeded[r]:
                drawn = [
                    race(row, gumbel_row(seed, place + j, len(row)), temperature, int(top_k), top_p)
                    for j, row in enumerate(rows)
                ]
                choices = choices.new_tensor(drawn)
            choices = torch.where(sound, choices, -1)
            kept = int((choices[:-1] == ids).int().cumprod(0).sum())
            num_accepted.append(kept if sound[kept] else -1)
            next_ids.append(max(0, int(choices[kept])))
            continue
        target = probabilities(rows, temperature, int(top_k), top_p)
        scaled = draft_logits[r, :count].float() / temperature
        draft = (scaled - draft_log_sums[r, :count, None]).exp()
        at = ids.unsqueeze(1)
        passed = uniforms[r, :count] * draft.gather(1, at)[:, 0] < target.gather(1, at)[:, 0]
        kept = int((passed & sound[:-1]).int().cumprod(0).sum())
        if not sound[kept]:
            num_accepted.append(-1)
            next_ids.append(0)
            continue
        # a draft of a head whose logits are NaN was none: refused, and nothing is left out for it
        drafted = torch.where(draft.isfinite(), draft, 0.0)
        mass = target[kept] if kept == count else (target[kept] - drafted[kept]).clamp_(min=0.0)
        cumulative = mass.double().cumsum(0)
        point = uniforms[r, -1].double() * cumulative[-1]
        token = int(torch.searchsorted(cumulative, point, right=True))
        num_accepted.append(kept)
        next_ids.append(token if token < len(mass) else int(rows[kept].argmax()))
    device = draft_ids.device
    accepted = torch.tensor(num_accepted, device=device)
    next_tokens = torch.tensor(next_ids, device=device)
    tokens = torch.cat([draft_ids, draft_ids.new_zeros(len(draft_ids), 1)], dim=1)
    tokens = tokens.scatter(1, accepted.clamp(min=0).unsqueeze(1), next_tokens.unsqueeze(1))
    return AcceptedBlock(accepted, next_tokens, lengths + accepted + 1, tokens)


def accept_block(
    draft_ids: torch.Tensor,
    draft_logits: torch.Tensor,
    draft_log_sums: torch.Tensor,
    target_logits: torch.Tensor,
    first_rows: torch.Tensor,
    num_drafts: torch.Tensor,
    filters: Filters,
    races: Races,
    uniforms: torch.Tensor,
    lengths: torch.Tensor,
) -> AcceptedBlock:
    """As accept_block_reference."""
    if not use_triton(target_logits):
        return accept_block_reference(
            draft_ids, draft_logits, draft_log_sums, target_logits, first_rows, num_drafts, filters,
            races, uniforms, lengths,
        )  # fmt: skip
    target_logits = target_logits.contiguous()
    num_requests, num_slots = draft_ids.shape
    num_tokens = target_logits.shape[1]
    num_blocks = -(-num_tokens // BLOCK_MASS)
    new = target_logits.new_empty
    choices = new(num_requests, num_slots + 1, dtype=torch.int32)
    stats = new(2, num_requests, num_slots + 1, dtype=torch.float32)  # cut, log of the mass
    masses = new(num_requests, num_blocks, dtype=torch.float32)
    accepted, next_ids, grown = new(3, num_requests, dtype=torch.int64)
    tokens = new(num_requests, num_slots + 1, dtype=torch.int64)
    block = min(BLOCK_ROW, next_power_of_2(num_tokens))
    num_parts = -(-num_tokens // ROW_SPAN)
    best = new(num_requests, num_slots + 1, num_parts, dtype=torch.float32)
    where = torch.empty_like(best, dtype=torch.int32)
    counters = arrival_counters(target_logits.device, num_requests * (num_slots + 1))
    early = launch_options(target_logits.device)
    row_kernel[(num_requests, num_slots + 1, num_parts)](
        target_logits, first_rows, num_drafts, *filters, best, where, counters, choices, stats,
        num_tokens, NUM_BITS=32 if target_logits.dtype == torch.float32 else 16, BLOCK=block,
        SPAN=ROW_SPAN, BLOCK_PARTS=next_power_of_2(num_parts), num_warps=8, maxnreg=ROW_REGISTERS,
        **early,
    )  # fmt: skip
    race_kernel[(num_requests, num_slots + 1)](
        target_logits, first_rows, num_drafts, filters.temperature, *races, lengths, choices, stats,
        num_tokens, BLOCK=max(block, GROUP.value), num_warps=8, **early,
    )  # fmt: skip
    mass_kernel[(num_requests, num_blocks)](
        draft_ids, draft_logits, draft_log_sums, target_logits, first_rows, num_drafts,
        filters.temperature, races.is_seeded, uniforms, choices, stats, masses, accepted, num_slots,
        num_tokens, BLOCK=BLOCK_MASS, num_warps=1, **early,
    )  # fmt: skip
    draw_kernel[(num_requests,)](
        draft_ids, draft_logits, draft_log_sums, target_logits, first_rows, num_drafts,
        filters.temperature, races.is_seeded, uniforms, choices, stats, masses, accepted, next_ids,
        lengths, grown, tokens, num_slots, num_tokens, num_blocks, BLOCK=BLOCK_MASS,
        BLOCK_PARTS=next_power_of_2(num_blocks), BLOCK_SLOTS=next_power_of_2(num_slots + 1),
        **early,
    )  # fmt: skip
    return AcceptedBlock(accepted, next_ids, grown, tokens)


def builds() -> list[KernelBuild]:
    kernels, early = [], {"DEPENDENT": True}
    integers = {"first_rows": "*i64", "num_drafts": "*i64"}
    drafts = {"draft_ids": "*i64", "draft_logits": "*fp32", "draft_log_sums": "*fp32"}
    inner = {"temperatures": "*fp32", "is_seeded": "*i1", "uniforms": "*fp32", "choices": "*i32"}
    inner |= {"stats": "*fp32", "masses": "*fp32", "num_accepted": "*i64"}
    for element, num_bits in (("bf16", 16), ("fp32", 32)):
        target = {"target_logits": f"*{element}"}
        row = target | integers | {"temperatures": "*fp32", "top_ks": "*i32", "top_ps": "*fp32"}
        row |= {"part_best": "*fp32", "part_where": "*i32", "counters": "*i32"}
        row |= {"choices": "*i32", "stats": "*fp32", "num_tokens": "i32"}
        parts = {"NUM_BITS": num_bits, "BLOCK": BLOCK_ROW, "SPAN": ROW_SPAN, "BLOCK_PARTS": 64}
        races = target | integers | {"temperatures": "*fp32", "is_seeded": "*i1", "seeds": "*i64"}
        races |= {"lengths": "*i64", "choices": "*i32", "stats": "*fp32", "num_tokens": "i32"}
        sizes = {"num_slots": "i32", "num_tokens": "i32"}
        last = {"next_ids": "*i64", "old_lengths": "*i64", "lengths": "*i64", "tokens": "*i64"}
        blocks = {"BLOCK": BLOCK_MASS, "BLOCK_PARTS": 2048, "BLOCK_SLOTS": 8}
        kernels += [
            KernelBuild(
                f"accept row {element}",
                row_kernel,
                row,
                parts | early,
                num_warps=8,
                max_registers=ROW_REGISTERS,
            ),
            KernelBuild(
                f"accept race {element}",
                race_kernel,
                races,
                {"BLOCK": BLOCK_ROW, **early},
                num_warps=8,
            ),
            KernelBuild(
                f"accept mass {element}",
                mass_kernel,
                drafts | target | integers | inner | sizes,
                {"BLOCK": BLOCK_MASS, **early},
                num_warps=1,
            ),
            KernelBuild(
                f"accept draw {element}",
                draw_kernel,
                drafts | target | integers | inner | last | sizes | {"num_blocks": "i32"},
                blocks | early,
            ),
        ]
    return kernels
