"""What a family of models writes where it calls tools."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Functions = Mapping[str, Mapping[str, Any]]  # JSON schemas of those offered, by name


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """Calls between two marks. `read` turns the text between them into calls; None: it is none.

    `specials` are tokens in calls that text otherwise leaves out. `grammar`: in Lark's language, of
    one call of one of these tools; None where no call can be forced. `write`: calls as text, for
    templates that leave them out of earlier answers. `one_by_one`: templates write one call of
    an answer, so that several become several answers.
    """

    title: str
    opening: str
    closing: str
    read: Callable[[str, Functions], Sequence[ToolCall] | None]
    specials: tuple[str, ...] = ()
    grammar: Callable[[Sequence[Mapping[str, Any]]], str] | None = None
    write: Callable[[Sequence[ToolCall]], str] | None = None
    one_by_one: bool = False
