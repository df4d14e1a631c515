"""The tools that a request offers, and whether the answer must call one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

from dspark.engine.session import Session
from dspark.errors import InputError
from dspark.text.grammar import Grammar
from dspark.text.tool_calls import ToolCallReader


@dataclass(frozen=True, slots=True)
class ToolUse:
    """`offered`: as chat templates take them."""

    offered: Sequence[dict[str, Any]]
    must_call: bool = False

    def reader(self, session: Session) -> Callable[[], ToolCallReader] | None:
        """Makes what reads an answer's calls; None if none are offered."""
        if not self.offered:
            return None
        return partial(ToolCallReader, self.offered, session.tool_format)

    @classmethod
    def chosen(
        cls,
        offered: Sequence[dict[str, Any]],
        choice: Literal["none", "auto", "required"] | None,
        named: str | None = None,
    ) -> Self:
        """`named`: the one tool to call. Raises InputError if a tool must be called that is not
        among those offered."""
        if choice == "none":
            return cls([])
        if named is not None:
            offered = [tool for tool in offered if tool["function"]["name"] == named]
        must_call = choice == "required" or named is not None
        if must_call and not offered:
            what = "tools" if named is None else f"the tool {named[:60]}"
            raise InputError(f"tool_choice needs {what}, and the request does not offer it")
        return cls(offered, must_call)


def answer_grammar(session: Session, use: ToolUse, schema: dict[str, Any] | None) -> Grammar | None:
    """What the answer must follow. Raises InputError for a schema beside tools: the answer might
    have to be a call."""
    if schema is not None and use.offered:
        raise InputError(
            "a JSON schema for the answer and tools together are not supported",
            "Leave response_format out, or set tool_choice to none.",
        )
    if use.must_call:
        form = session.tool_format
        if form.grammar is None:
            raise InputError(
                f"tool_choice cannot force a call in the form of {form.title}",
                "Set tool_choice to auto.",
            )
        return session.grammars().of_lark(form.grammar(use.offered))
    return None if schema is None else session.grammars().of_schema(schema)
