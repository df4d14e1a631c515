"""Plain torch in place of kernels that failed, so that what uses them goes on.

The operations' own references read numbers on the host, which a capture forbids. While one is under
way these take their place: every request has as many rows as the pass allows, and is greedy.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F

from dspark_kernels import AcceptedBlock
from dspark_kernels.paged_cache import PagedRows
from gpu_parts.setting import Record

# names of the checks' kernels -> modules of dspark_kernels
MODULES = {
    "skinny linear": "skinny_linear",
    "attention": "paged_attention",
    "norm": "norm",
    "embedded blocks": "embedded_blocks",
    "norm, rope, write": "norm_rope_write",
    "swiglu": "swiglu",
    "sequential head": "sequential_head",
    "accept": "accept_block",
    "round state": "round_state",
    "loss terms": "distribution_terms",
}


def failed_modules(records: Iterable[Record]) -> set[str]:
    """Of kernels that raised; one that is only wrong keeps its place, and its time."""
    failed = [record["kernel"] for record in records if "kernel" in record and "error" in record]
    longest_first = sorted(MODULES, key=len, reverse=True)
    found = [next((n for n in longest_first if kernel.startswith(n)), "") for kernel in failed]
    return {MODULES[name] for name in found if name}


def use_stand_ins(
    modules: Iterable[str],
    is_capturing: Callable[[], bool] = torch.cuda.is_current_stream_capturing,
    put: Callable[[Any, str, Any], None] = setattr,
) -> None:
    """From now on, in this process. put: as setattr."""

    def while_capturing(place: Any, name: str, stand_in: Callable[..., Any]) -> None:
        own = getattr(place, name)
        put(place, name, lambda *a, **k: (stand_in if is_capturing() else own)(*a, **k))

    for name in modules:
        module = import_module(f"dspark_kernels.{name}")
        put(module, "use_triton", lambda *tensors, has_backward=False: False)
        if name == "paged_attention":
            while_capturing(module, "paged_attention_reference", attend)
        if name == "accept_block":
            while_capturing(module, "accept_block_reference", accept_greedily)
        if name == "sequential_head":
            while_capturing(module, "gumbel_reference", no_noise)
        if name == "round_state":
            while_capturing(module, "uniform_reference", no_uniforms)
        if name == "norm_rope_write":
            while_capturing(PagedRows, "positions", positions)
            while_capturing(PagedRows, "slot_of_row", slot_of_row)


def positions(rows: PagedRows) -> torch.Tensor:
    steps = torch.arange(rows.max_rows, device=rows.starts.device)
    return (rows.starts.long().unsqueeze(1) + steps).flatten()


def slot_of_row(rows: PagedRows) -> torch.Tensor:
    return rows.slots.long().unsqueeze(1).expand(-1, rows.max_rows).flatten()


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    rows: PagedRows,
    scale: float,
    **variant: Any,
) -> torch.Tensor:
    """As paged_attention, without its variants."""
    if any(given is not None and given != 0 for given in variant.values()):
        raise NotImplementedError("no stand-in for windows, soft caps and sinks")
    pages = tables[rows.slots.long()][:, : rows.num_pages].long()
    cached_keys, cached_values = (
        cached[pages].transpose(1, 2).flatten(2, 3) for cached in (keys, values)
    )
    grouped = query.unflatten(0, (rows.num_requests, rows.max_rows)).transpose(1, 2)
    place = positions(rows).unflatten(0, (rows.num_requests, rows.max_rows))
    seen = place if rows.causal else place[:, -1:].expand_as(place)
    mask = torch.arange(cached_keys.shape[2], device=query.device) <= seen.unsqueeze(-1)
    out = F.scaled_dot_product_attention(
        grouped, cached_keys, cached_values, mask.unsqueeze(1), scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2).flatten(0, 1).flatten(1)


def accept_greedily(
    draft_ids: torch.Tensor,
    draft_logits: torch.Tensor,
    draft_log_sums: torch.Tensor,
    target_logits: torch.Tensor,
    first_rows: torch.Tensor,
    num_drafts: torch.Tensor,
    filters: object,
    races: object,
    uniforms: torch.Tensor,
    lengths: torch.Tensor,
) -> AcceptedBlock:
    """As accept_block at temperature 0."""
    steps = torch.arange(draft_ids.shape[1] + 1, device=draft_ids.device)
    at = (first_rows.unsqueeze(1) + steps).clamp(max=len(target_logits) - 1)
    choices = target_logits.argmax(-1)[at]
    matches = (choices[:, :-1] == draft_ids) & (steps[:-1] < num_drafts.unsqueeze(1))
    accepted = matches.long().cumprod(1).sum(1)
    next_ids = choices.gather(1, accepted.unsqueeze(1))
    tokens = F.pad(draft_ids, (0, 1)).scatter(1, accepted.unsqueeze(1), next_ids)
    return AcceptedBlock(accepted, next_ids[:, 0], lengths + accepted + 1, tokens)


def no_noise(seeds: torch.Tensor, places: torch.Tensor, num_tokens: int) -> torch.Tensor:
    return torch.zeros(len(seeds), num_tokens, device=seeds.device)


def no_uniforms(seeds: torch.Tensor, places: torch.Tensor, count: int) -> torch.Tensor:
    return torch.zeros(len(seeds), count, device=seeds.device)
