"""Reads a line at a terminal, with editing and history if readline is available."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def read_line(sign: str) -> str:
    """Raises EOFError for Ctrl+D and KeyboardInterrupt for Ctrl+C."""
    with suppress(ImportError):
        import readline  # noqa: F401, input() uses it once imported
    with _shown_on_a_terminal():
        return input(sign)


def typed_text() -> str:
    """The content of the line that Ctrl+C ended."""
    with suppress(ImportError):
        import readline

        return readline.get_line_buffer()
    return ""


@contextmanager
def _shown_on_a_terminal() -> Iterator[None]:
    """Editing needs a terminal at file 1: stderr's, if stdout is a file or pipe."""
    if os.isatty(1) or not os.isatty(2):
        yield
        return
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
