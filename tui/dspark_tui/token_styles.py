"""How marks look: where a token came from, told by colour and by a second sign."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from textual.content import Content, Span

from dspark.chat.token_spans import Kind, Mark

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
class View:
    """How answers are shown: `rendered` as Markdown once they have ended, otherwise marked."""

    show_rejected: bool = True
    shading: bool = False
    rendered: bool = True


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
