"""Prompts of a bench as token ids, and the words that state their format."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dspark.bench.conditions import Condition
from dspark.bench.context_text import ledger_lines
from dspark.bench.prompts import BenchPrompt, PromptText
from dspark.errors import InputError

if TYPE_CHECKING:
    from dspark.engine.session import Session

DEFAULT = Condition()


def encode_prompts(
    session: "Session", texts: Sequence[PromptText], condition: Condition = DEFAULT
) -> list[BenchPrompt]:
    """Each prompt as the user's only message, behind `depth` tokens of a ledger."""
    if session.tokenizer is None:
        raise InputError(
            f"{session.name} has no tokenizer", "A bench needs a model with a tokenizer."
        )
    before = context_of(session, condition.depth)
    return [
        BenchPrompt(each.category, tuple(_encode(session, before + each.text, condition)))
        for each in texts
    ]


def context_of(session: "Session", depth: int) -> str:
    """Whole lines of the ledger, of at least `depth` tokens; "" for none."""
    if not depth:
        return ""
    lines, length = [], 0
    for line in ledger_lines():
        lines.append(line)
        length += len(session.encode(line)) + 1  # and its end
        if length >= depth:
            break
    return "\n".join([*lines, "", ""])


def _encode(session: "Session", text: str, condition: Condition) -> list[int]:
    if condition.thinking is None:
        return session.encode_prompt(text)
    return session.encode_chat([{"role": "user", "content": text}], thinking=condition.thinking)


def prompt_format(session: "Session", condition: Condition) -> str:
    """How the prompts reach the model, to be stated with every accepted length."""
    codec = session.tokenizer
    is_chat = codec is not None and codec.has_chat_template
    words = "the model's chat template, one user message, no system prompt" if is_chat else "raw"
    if condition.thinking is not None:
        words += f", enable_thinking {str(condition.thinking).lower()}"
    if condition.depth:
        words += f", behind a made-up ledger of {condition.depth:,} tokens"
    return words
