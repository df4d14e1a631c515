"""Bytes that a step of each model must move; divided by the copy bandwidth, its floor."""

from collections.abc import Mapping
from dataclasses import dataclass

ELEMENT = 2  # bytes of a bf16 number
BLOCK_SIZE = 7  # tokens drafted per round
MARKOV_RANK = 256
EPS = 1e-6  # of Qwen3's norms


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Qwen3 target and the released head's size for it."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    num_draft_layers: int = 5
    num_taps: int = 5

    @property
    def tap_layers(self) -> tuple[int, ...]:
        """Spread over the depth, never the last one."""
        step = max((self.num_layers - 4) // max(self.num_taps - 1, 1), 1)
        return tuple(1 + step * i for i in range(self.num_taps))

    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """[out, in] of the four fused matrices of a layer."""
        heads = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return {
            "qkv": (heads, self.hidden_size),
            "o": (self.hidden_size, self.num_heads * self.head_dim),
            "gate+up": (2 * self.intermediate_size, self.hidden_size),
            "down": (self.hidden_size, self.intermediate_size),
        }

    def matrices(self) -> dict[str, tuple[int, int]]:
        return self.layer_matrices() | {"head": (self.vocab_size, self.hidden_size)}

    def layer_bytes(self) -> int:
        return ELEMENT * sum(rows * columns for rows, columns in self.layer_matrices().values())

    def head_bytes(self) -> int:
        return ELEMENT * self.vocab_size * self.hidden_size

    def cache_bytes(self, context: int, num_layers: int) -> int:
        return ELEMENT * 2 * num_layers * context * self.num_kv_heads * self.head_dim

    def step_bytes(self, context: int) -> int:
        """A plain step, and a verification too: up to 16 rows read the same bytes."""
        cache = self.cache_bytes(context, self.num_layers)
        return self.num_layers * self.layer_bytes() + self.head_bytes() + cache

    def markov_bytes(self) -> int:
        """W2, read once per draft."""
        return ELEMENT * MARKOV_RANK * self.vocab_size

    def draft_bytes(self, context: int) -> int:
        """Draft layers, the projection of the taps, output head, W2 once per draft, the head's
        cache."""
        joined = ELEMENT * self.num_taps * self.hidden_size**2
        cache = self.cache_bytes(context, self.num_draft_layers)
        layers = self.num_draft_layers * self.layer_bytes()
        return layers + joined + self.head_bytes() + BLOCK_SIZE * self.markov_bytes() + cache

    def round_bytes(self, context: int) -> int:
        return self.step_bytes(context) + self.draft_bytes(context)


SHAPES = (
    ModelShape("Qwen3-4B", 36, 2560, 9728, 32, 8, 128, 151_936),
    ModelShape("Qwen3-8B", 36, 4096, 12288, 32, 8, 128, 151_936),
    ModelShape("Qwen3-14B", 40, 5120, 17408, 40, 8, 128, 151_936),
)
TINY = ModelShape("tiny", 3, 128, 128, 2, 1, 64, 130, num_draft_layers=1, num_taps=1)

# accepted length of the released heads at temperature 1 without a scheduler (arXiv 2607.05147):
# the mean of GSM8K, MATH and AIME25, and that of MT-Bench, Alpaca and Arena
PUBLISHED_TAU: Mapping[str, Mapping[str, float]] = {
    "Qwen3-4B": {"math": 5.57, "chat": 3.49},
    "Qwen3-8B": {"math": 5.65, "chat": 3.50},
    "Qwen3-14B": {"math": 5.63, "chat": 3.47},
}


def floor_table(bandwidth: float) -> str:
    """The floors as a Markdown table, for bytes a second; µs of a matrix, ms of a step."""
    head = "| | qkv | o | gate+up | down | one layer | output head |"
    head += " plain step | draft | round | round ÷ plain | 8 k of context |"
    lines = [head, "|" + "---|" * 12]
    for shape in SHAPES:
        micro = [
            ELEMENT * rows * columns / bandwidth * 1e6
            for rows, columns in shape.layer_matrices().values()
        ]
        micro += [shape.layer_bytes() / bandwidth * 1e6, shape.head_bytes() / bandwidth * 1e6]
        step, draft = (size(0) / bandwidth * 1e3 for size in (shape.step_bytes, shape.draft_bytes))
        cache = shape.cache_bytes(8192, shape.num_layers) / bandwidth * 1e3
        cells = [f"{value:.1f}" for value in micro]
        cells += [f"{value:.2f} ms" for value in (step, draft, step + draft)]
        cells += [f"{(step + draft) / step:.2f}", f"{cache:.2f} ms"]
        lines.append(f"| {shape.name} | {' | '.join(cells)} |")
    return "\n".join(lines)
