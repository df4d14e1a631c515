"""Text of one kind: of the answer, of the thinking before it, or a mark between them."""

from dataclasses import dataclass

from dspark.text.marks import ANY_MARK


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text of one kind. A mark is of neither kind and never shown."""

    text: str
    is_thinking: bool = False
    is_mark: bool = False


def spans_of(text: str, is_thinking: bool) -> list[Span]:
    """Text of one kind, apart from the marks in it."""
    parts = filter(None, ANY_MARK.split(text))
    return [Span(part, is_thinking, bool(ANY_MARK.fullmatch(part))) for part in parts]
