"""Keys and values of a few slots on pages that lie in no order."""

import torch

from dspark_kernels.cpu.step_words import Pages
from dspark_kernels.paged_cache import PAGE

COLUMNS = 2


def new_pages(num_layers: int, num_slots: int, num_kv_heads: int, head_dim: int) -> Pages:
    """What was never written must not be read: it is no number."""
    num_pages = num_slots * COLUMNS
    shape = (num_layers, 2, num_pages, num_kv_heads, PAGE, head_dim)
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(0))
    tables = order.to(torch.int32).view(num_slots, COLUMNS).contiguous()
    return Pages(torch.full(shape, float("nan")), tables)


def copied(cache: Pages) -> Pages:
    return Pages(cache.cached.clone(), cache.tables)


def read(cache: Pages, slot: int) -> torch.Tensor:
    """[layers, 2, kv_heads, positions, D], by a loop over positions."""
    pages = cache.tables[slot].tolist()
    return torch.cat([cache.cached[:, :, page] for page in pages], dim=-2)


def write(cache: Pages, slot: int, start: int, numbers: torch.Tensor) -> None:
    """numbers [layers, 2, kv_heads, n, D] from a position on."""
    for index, number in enumerate(numbers.unbind(-2)):
        page, place = divmod(start + index, PAGE)
        cache.cached[:, :, int(cache.tables[slot, page]), :, place] = number
