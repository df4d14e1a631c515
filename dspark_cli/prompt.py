"""The prompt, from the argument, stdin or token ids, and its encoding."""

import sys
from typing import TYPE_CHECKING

from dspark.config import Effort
from dspark.errors import InputError

if TYPE_CHECKING:
    from dspark.engine.session import Session


def read_prompt(argument: str | None) -> str:
    """The argument, or all of stdin without one."""
    prompt = argument if argument is not None else _read_stdin()
    if not prompt.strip():
        raise InputError("the prompt is empty", "Give it as an argument or on stdin.")
    # Python represents argument bytes that are not UTF-8 as lone surrogates
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise InputError(
            "the prompt is not UTF-8", "Convert it to UTF-8 first, for example with iconv."
        )
    return prompt


def _read_stdin() -> str:
    if sys.stdin.isatty():
        print("dspark: type the prompt and end it with Ctrl+D", file=sys.stderr)
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"stdin is not UTF-8 (byte {error.start})",
            "Convert it to UTF-8 first, for example with iconv.",
        ) from None
    return text.removesuffix("\n")


def parse_token_ids(text: str) -> list[int]:
    numbers = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in numbers):
        raise InputError(
            "--token-ids takes whole numbers separated by commas",
            "Write it like --token-ids 1,2,3.",
        )
    return [int(part) for part in numbers]


def encode_prompt(
    session: "Session", prompt: str, is_raw: bool, effort: Effort | None = None
) -> list[int]:
    """Through the chat template if the model has one, unless `is_raw`."""
    if session.tokenizer is None:
        raise InputError(
            f"{session.name} has no tokenizer", "Give the prompt as --token-ids 1,2,3."
        )
    return session.encode_prompt(prompt, is_raw=is_raw, effort=effort)
