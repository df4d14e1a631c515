"""A trace as an asciinema recording (version 2 of its format), with the tokens' colours."""

import json
from collections.abc import Iterator, Sequence

from dspark.chat.backend import ChatEvent
from dspark.chat.control_characters import visible
from dspark.chat.token_spans import Kind, Mark, marks_of
from dspark.chat.trace import TracedAnswer
from dspark.events import Finished
from dspark_cli.output.answer import stats_line

WIDTH, HEIGHT = 88, 24
PAUSE = 1.0  # seconds after an answer
STYLES: dict[Kind, str] = {"accepted": "32;4", "own": "0", "rejected": "31;9"}
DIM, RESET = "\x1b[2m", "\x1b[0m"


def cast_lines(answers: Sequence[TracedAnswer]) -> Iterator[str]:
    """The recording's header, then a line for each write."""
    yield json.dumps({"version": 2, "width": WIDTH, "height": HEIGHT, "title": "dspark"})
    start = 0.0
    for answer in answers:
        yield _write(start, f"\x1b[1m> {visible(answer.prompt)}{RESET}\n\n")
        end = start
        for at, event in answer.events:
            end = start + at
            text = _text(event)
            if text:
                yield _write(end, text)
        start = end + PAUSE


def _text(event: ChatEvent) -> str:
    text = "".join(map(_coloured, marks_of(event)))
    if isinstance(event, Finished):
        text += f"\n\n{DIM}{stats_line(event.stats)}{RESET}\n\n"
    return text


def _coloured(mark: Mark) -> str:
    style = f"{STYLES[mark.kind]};2" if mark.is_thinking else STYLES[mark.kind]
    return f"\x1b[{style}m{mark.text}{RESET}"


def _write(seconds: float, text: str) -> str:
    """Terminals go to the start of a line only when told."""
    shown = text.replace("\n", "\r\n")
    return json.dumps([round(seconds, 6), "o", shown], ensure_ascii=False)
