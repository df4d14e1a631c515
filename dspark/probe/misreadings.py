"""Ways in which a head can be misread, each one change away from its configuration."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dspark.checkpoints.head_config import HeadConfig

COMMON_THETAS = (10_000.0, 1_000_000.0)
HIDDEN_NORM = ("hidden_norm",)
HEAD_NORMS = ("q_norm", "k_norm")


@dataclass(frozen=True, slots=True)
class Convention:
    """How a head is run; the default is as configured.

    `fault` states the error in the configuration if this one drafts better. block_shift: draft k is
    read from row k + block_shift of the block. previous_shift and row_shift: the token that the
    sequential head or an EAGLE-3 row gets, relative to the right one. position_shift: shift of
    the block's RoPE positions.
    """

    fault: str = ""
    tap_layers: tuple[int, ...] | None = None
    norms_taps: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    has_rope: bool = True
    position_shift: int = 0
    block_shift: int = 0
    previous_shift: int = 0
    row_shift: int = 0
    swaps_markov: bool = False

    def applied_to(self, config: HeadConfig) -> HeadConfig:
        """The config that the head is read with."""
        return replace(config, **self.changes)


def neighbours(
    config: HeadConfig, *, num_layers: int, thetas: Iterable[float], masks: Iterable[int]
) -> list[Convention]:
    """All alternatives for this head. `thetas` and `masks` are candidate values."""
    conventions = [*_of_taps(config, num_layers), *_of_rope(config, thetas)]
    if not config.has_mask:
        return [*conventions, *_of_rows()]
    conventions += _of_blocks(config.block_size)
    conventions += [
        Convention(
            f"the mask token is {mask}, not {config.mask_token_id}",
            changes={"mask_token_id": mask},
        )
        for mask in dict.fromkeys(masks)
        if mask != config.mask_token_id and 0 <= mask < config.vocab_size
    ]
    if config.markov_type != "none":
        conventions.append(
            Convention(
                "the sequential head expects the token before the one it is given",
                previous_shift=-1,
            )
        )
        if config.draft_vocab_size is None:
            conventions.append(
                Convention("the two tables of the sequential head are swapped", swaps_markov=True)
            )
    return conventions


def _of_taps(config: HeadConfig, num_layers: int) -> Iterator[Convention]:
    taps = config.target_layer_ids
    for shift, word in ((-1, "high"), (1, "low")):
        layers = tuple(layer + shift for layer in taps)
        if layers[0] >= -1 and layers[-1] < num_layers:
            yield Convention(
                f"the taps are one layer too {word}: {list(layers)} is meant, not {list(taps)}",
                tap_layers=layers,
            )
    orders = (taps[::-1], taps[1:] + taps[:1], taps[-1:] + taps[:-1])
    for order in dict.fromkeys(order for order in orders if order != taps):
        yield Convention(
            f"the taps are joined in the wrong order: {list(order)} is meant, not {list(taps)}",
            tap_layers=order,
        )
    yield Convention("the head expects its taps after the target's final norm", norms_taps=True)


def _of_rope(config: HeadConfig, thetas: Iterable[float]) -> Iterator[Convention]:
    yield Convention("the head does not use rotary positions", has_rope=False)
    for theta in dict.fromkeys((*thetas, *COMMON_THETAS)):
        if theta != config.rope_theta:
            yield Convention(
                f"the RoPE base is {theta:g}, not {config.rope_theta:g}",
                changes={"rope_theta": theta},
            )
    yield Convention("the head has no norms on queries and keys", without=HEAD_NORMS)
    yield Convention("the context features are not normalised", without=HIDDEN_NORM)


def _of_blocks(block_size: int) -> Iterator[Convention]:
    for shift, word in ((1, "later"), (-1, "earlier")):
        yield Convention(
            f"the block's RoPE positions are one too {'low' if shift > 0 else 'high'}",
            position_shift=shift,
        )
        if block_size > 1:
            yield Convention(
                f"drafts are read from the wrong rows: they begin one row {word}",
                block_shift=shift,
            )


def _of_rows() -> Iterator[Convention]:
    yield Convention(
        "each hidden state is paired with its own token, not with the next one",
        row_shift=-1,
    )
