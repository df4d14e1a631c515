"""Tokens as stretches of text of one origin: the first view of a turn's events."""

from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from dspark.chat.backend import ChatEvent
from dspark.chat.control_characters import visible
from dspark.events import Finished, Piece, Round

Kind = Literal["accepted", "own", "rejected"]
LEGEND: dict[Kind, tuple[str, str]] = {  # at length and in short
    "accepted": ("accepted draft", "accepted"),
    "rejected": ("rejected draft", "rejected"),
    "own": ("the model's own", "own"),
}


@dataclass(frozen=True, slots=True)
class Mark:
    """A stretch of text of one origin."""

    text: str
    kind: Kind
    confidence: float | None = None
    is_thinking: bool = False


def marks_of(event: ChatEvent) -> list[Mark]:
    """In reading order: drafts that were kept, drafts that were refused, the target's own token;
    at the end what was held back until then."""
    if isinstance(event, Finished):
        tail = visible(event.tail)
        return [Mark(tail, "own", is_thinking=event.ends_thinking)] if tail else []
    kept = list(takewhile(lambda piece: piece.is_draft, event.pieces))
    own = event.pieces[len(kept) :]
    rejected = event.rejected if isinstance(event, Round) else ()
    return [
        *(_mark(piece, "accepted") for piece in kept),
        *(_mark(piece, "rejected") for piece in rejected),
        *(_mark(piece, "own") for piece in own),
    ]


def _mark(piece: Piece, kind: Kind) -> Mark:
    text = piece.text.translate(_ONE_LINE) if kind == "rejected" else piece.text
    return Mark(visible(text), kind, piece.confidence, piece.is_thinking)


# A refused line break must not break the line.
_ONE_LINE = {ord("\n"): "⏎", ord("\t"): "⇥"}
