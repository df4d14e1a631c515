"""Tokens as marked text: each token's origin shown by colour and by a second sign."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Literal

from textual.content import Content, Span

from dspark.chat.control_characters import visible
from dspark.events import Finished, Piece, PrefillProgress, Round

Kind = Literal["accepted", "own", "rejected"]

SIGNS: dict[Kind, str] = {
    "accepted": "$text-success underline",
    "own": "$foreground",
    "rejected": "$text-error strike",
}
SHADED_SIGNS: dict[Kind, str] = {
    "accepted": "$foreground underline",
    "own": "$foreground",
    "rejected": "$foreground strike",
}
THINKING_SIGNS: dict[Kind, str] = {
    "accepted": "$foreground-muted italic underline",
    "own": "$foreground-muted italic",
    "rejected": "$foreground-muted italic strike",
}
SHADES = 8
DEEPEST_SHADE_PERCENT = 60


@dataclass(frozen=True, slots=True)
class Mark:
    """A span of text of one origin."""

    text: str
    kind: Kind
    confidence: float | None = None
    is_thinking: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """How marks are shown."""

    show_rejected: bool = True
    shading: bool = False


def marks_of(event: PrefillProgress | Round | Finished) -> list[Mark]:
    """In reading order: accepted drafts, rejected drafts, the target's own token; at the end, text
    held back until then."""
    if isinstance(event, Finished):
        tail = visible(event.tail)
        return [Mark(tail, "own", is_thinking=event.ends_thinking)] if tail else []
    accepted = list(takewhile(lambda piece: piece.is_draft, event.pieces))
    target_pieces = event.pieces[len(accepted) :]
    rejected = event.rejected if isinstance(event, Round) else ()
    return [
        *(_mark(piece, "accepted") for piece in accepted),
        *(_mark(piece, "rejected") for piece in rejected),
        *(_mark(piece, "own") for piece in target_pieces),
    ]


def style_of(mark: Mark, view: View) -> str:
    signs = SHADED_SIGNS if view.shading else SIGNS
    sign = THINKING_SIGNS[mark.kind] if mark.is_thinking else signs[mark.kind]
    if not view.shading:
        return sign
    if mark.confidence is None or mark.kind == "own":
        return sign
    return f"{sign} on $primary {shade_percent(mark.confidence)}%"


def shade_percent(confidence: float) -> int:
    """Few steps, so that neighbours of similar confidence share a span."""
    step = round(min(max(confidence, 0.0), 1.0) * SHADES)
    return round(step / SHADES * DEEPEST_SHADE_PERCENT)


def content_of(marks: Iterable[Mark], view: View) -> Content:
    shown = (
        mark for mark in marks if mark.text and (view.show_rejected or mark.kind != "rejected")
    )
    text = ""
    spans = []
    for style, group in groupby(shown, key=lambda mark: style_of(mark, view)):
        start = len(text)
        text += "".join(mark.text for mark in group)
        spans.append(Span(start, len(text), style))
    return Content(text, spans)


def _mark(piece: Piece, kind: Kind) -> Mark:
    text = piece.text.translate(_ONE_LINE) if kind == "rejected" else piece.text
    return Mark(visible(text), kind, piece.confidence, piece.is_thinking)


# A rejected line break must not break the line.
_ONE_LINE = {ord("\n"): "⏎", ord("\t"): "⇥"}
