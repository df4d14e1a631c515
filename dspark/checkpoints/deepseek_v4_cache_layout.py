"""Where a DeepSeek-V4 target keeps what it remembers: the one source of sizes, for caches and for
the memory that is stated before they exist.

Keys of the window and rows that wait for their compression are in rings of a request, one piece
of memory; compressed entries and the indexer's keys are in pages, in two halves.
"""

from typing import NamedTuple

from dspark.checkpoints.deepseek_v4_target_config import MOST_COMPRESSED, DeepseekV4TargetConfig

MAX_ROWS = 64  # of a request, in a pass that may be taken back
POSITIONS = MOST_COMPRESSED  # of a page
WINDOW = "window"
INDEX_SCORES = 2**24  # numbers that indexers may hold at once: a pass over more is made in parts
ROUNDED = 40 / 128  # of a number of a row of 8 bits, with its scales


class RingPlace(NamedTuple):
    """`start`: numbers of the request's rings before it; `width`: numbers of a cell."""

    start: int
    cells: int
    width: int


class EntryPlace(NamedTuple):
    """`half` of the page, numbers in it before them, entries of a page, width."""

    half: int
    start: int
    per_page: int
    width: int


def compressors(config: DeepseekV4TargetConfig, layer: int) -> dict[str, int]:
    """A layer's compressors and the widths of their entries."""
    if not config.ratios[layer]:
        return {}
    found = {"compressor": config.head_dim}
    return found | ({"indexer.compressor": config.index_dim} if config.selects[layer] else {})


def ring_places(config: DeepseekV4TargetConfig) -> tuple[dict[tuple[int, str], RingPlace], int]:
    """By layer and name, WINDOW or a compressor's; and the numbers of all rings of a request."""
    places, end = {}, 0
    for layer in range(config.num_layers):
        sizes = {WINDOW: (window_cells(config), config.head_dim)}
        for name, width in compressors(config, layer).items():  # values and gates
            sizes[name] = raw_cells(config, layer), 2 * width * (1 + config.selects[layer])
        for name, (cells, width) in sizes.items():
            places[layer, name] = RingPlace(end, cells, width)
            end += cells * width
    return places, end


def entry_places(config: DeepseekV4TargetConfig) -> tuple[dict[tuple[int, str], EntryPlace], int]:
    """By layer and compressor, and the numbers that a position takes in a half."""
    ends, places = [0, 0], {}
    for layer in range(config.num_layers):
        for name, width in compressors(config, layer).items():
            half, count = ends.index(min(ends)), POSITIONS // config.ratios[layer]
            places[layer, name] = EntryPlace(half, ends[half], count, width)
            ends[half] += count * width
    return places, max(1, -(-max(ends) // POSITIONS))


def token_values(config: DeepseekV4TargetConfig) -> int:
    """Numbers that a position takes in both halves of its page."""
    return 2 * entry_places(config)[1]


def request_values(config: DeepseekV4TargetConfig) -> int:
    """Numbers of a request whatever its length: its rings."""
    return ring_places(config)[1]


def row_values(config: DeepseekV4TargetConfig) -> int:
    """Numbers of 4 bytes that a pass of our own forward holds of each of its rows: streams twice,
    queries and what they attend to, projections, and every pair of a row and a routed expert."""
    hidden, inner, top = config.hidden_size, config.expert_size, config.experts_per_token
    raw: dict[str, int] = {}
    for (_, name), place in ring_places(config)[0].items():
        if name != WINDOW:
            raw[name] = max(raw.get(name, 0), place.width)
    fixed = (2 * config.num_streams + 2) * hidden + config.query_rank + config.head_dim
    attention = 2 * config.num_heads * config.head_dim + config.output_groups * config.output_rank
    index = config.index_heads * (config.index_dim + 1) + 2 * config.index_top
    experts = 2 * config.num_experts + 3 * inner + 2 * config.num_layers * top
    pairs = top * (hidden + 2 * inner) + ROUNDED * (hidden + top * inner)
    return fixed + attention + sum(raw.values()) + index + experts + int(pairs)


def rows_at_once(config: DeepseekV4TargetConfig, length: int) -> int:
    """Rows of a pass over texts of up to `length` positions, whose indexers score every entry."""
    ratios = [r for r, s in zip(config.ratios, config.selects, strict=True) if s]
    entries = length // min(ratios) if ratios else 0
    return max(1, INDEX_SCORES // entries) if entries > config.index_top else length


def window_cells(config: DeepseekV4TargetConfig) -> int:
    return config.window - 1 + MAX_ROWS


def raw_cells(config: DeepseekV4TargetConfig, layer: int) -> int:
    return config.ratios[layer] * (1 + config.selects[layer]) - 1 + MAX_ROWS
