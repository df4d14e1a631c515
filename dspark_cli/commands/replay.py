"""`dspark replay`: plays a trace again, without a model."""

import io
import math
from pathlib import Path
from typing import Annotated

import typer

from dspark.errors import InputError
from dspark_cli.commands.chat import Plain, has_screen
from dspark_cli.output.tables import say

EXAMPLES = (
    "dspark replay answer.jsonl",
    "dspark replay answer.jsonl --step",
    "dspark replay answer.jsonl --svg answer.svg",
)
EXPORT = "Export"

Trace = Annotated[
    Path, typer.Argument(metavar="FILE", help="A trace, as chat and generate write with --trace.")
]
Speed = Annotated[float, typer.Option(metavar="X", help="How many times as fast as it was.")]
Step = Annotated[bool, typer.Option("--step", help="Wait for the right arrow before each round.")]
Svg = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write a picture of the chat after the last answer.",
        rich_help_panel=EXPORT,
    ),
]
Cast = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write an asciinema recording.", rich_help_panel=EXPORT),
]
Size = Annotated[
    str,
    typer.Option(
        metavar="COLUMNSxROWS", help="Size of the picture in characters.", rich_help_panel=EXPORT
    ),
]


def replay(
    file: Trace,
    speed: Speed = 1.0,
    step: Step = False,
    plain: Plain = False,
    svg: Svg = None,
    cast: Cast = None,
    size: Size = "88x22",
) -> None:
    """Play a trace of answers in the chat, without a model."""
    from dspark.chat.replay import ReplayBackend
    from dspark.chat.trace import read_trace

    if not speed > 0:
        raise InputError(f"--speed {speed:g} is not above 0", "1 is as fast as it was.")
    answers = read_trace(file)
    if cast is not None:
        from dspark_cli.output.cast import cast_lines

        _write(cast, "".join(f"{line}\n" for line in cast_lines(answers)))
    if svg is not None:
        from dspark_tui.replay import picture_of

        _write(svg, picture_of(ReplayBackend(answers, speed=math.inf), _size(size)))
    if cast is not None or svg is not None:
        return
    backend = ReplayBackend(answers, speed=speed, steps=step)
    if not plain and has_screen():
        from dspark_tui.replay import run_replay

        raise typer.Exit(run_replay(backend))
    if step:
        raise InputError("--step needs the screen of a terminal", "Leave it out.")
    from dspark.chat.backend import ChatSettings
    from dspark_cli.plain_chat import run_plain_chat

    run_plain_chat(backend, ChatSettings(prompts=backend.prompts), io.BytesIO())


def _write(path: Path, text: str) -> None:
    """Completely or not at all."""
    from dspark.atomic import replacing

    try:
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} could not be written: {error.strerror}", "Name another file."
        ) from error
    say(f"wrote {path}")


def _size(text: str) -> tuple[int, int]:
    columns, _, rows = text.partition("x")
    if not (columns.isdecimal() and rows.isdecimal() and int(columns) and int(rows)):
        raise InputError(f"--size {text} is not COLUMNSxROWS", "For example --size 88x22.")
    return int(columns), int(rows)
