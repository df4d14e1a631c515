"""The text of the libraries other than matrices."""

from functools import partial

from dspark_kernels.cpu.argmax import write_argmax
from dspark_kernels.cpu.attend_text import write_attend
from dspark_kernels.cpu.embed import write_embed
from dspark_kernels.cpu.float_text import write_declarations
from dspark_kernels.cpu.llvm_text import Text
from dspark_kernels.cpu.norm_round import write_norm_round
from dspark_kernels.cpu.philox_text import write_noise_words
from dspark_kernels.cpu.race_text import write_race, write_race_declarations
from dspark_kernels.cpu.rope_write import write_rope_write
from dspark_kernels.cpu.rounded_text import (
    write_round_declarations,
    write_round_row,
    write_round_rows,
)
from dspark_kernels.cpu.sequential_text import write_draft_choice, write_draft_features
from dspark_kernels.cpu.swiglu_round import write_swiglu_round

EXPORTS = (
    "round_rows",
    "norm_round",
    "swiglu_round",
    "rope_write",
    "argmax",
    "race",
    "noise_words",
    "draft_features",
    "draft_choice",
    "draft_choice_noise",
)


def rows_text() -> str:
    text = Text()
    for write in (
        write_round_row,
        write_round_rows,
        write_norm_round,
        write_swiglu_round,
        write_rope_write,
        write_argmax,
        write_race,
        write_noise_words,
        write_draft_features,
        partial(write_draft_choice, has_noise=False),
        partial(write_draft_choice, has_noise=True),
        write_declarations,
        write_race_declarations,
        write_round_declarations,
    ):
        write(text)
    return str(text)


def embed_text(kind: str) -> str:
    text = Text()
    write_embed(text, kind)
    return str(text)


def attend_text(head_dim: int, group: int, *, floats: bool = False) -> str:
    text = Text()
    write_attend(text, head_dim, group, floats=floats)
    write_declarations(text)
    write_round_declarations(text)
    return str(text)
