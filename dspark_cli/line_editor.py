"""A line from a person at a terminal, with editing and history where there is readline."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def read_line(sign: str) -> str:
    """Raises EOFError for Ctrl+D and KeyboardInterrupt for Ctrl+C."""
    with suppress(ImportError):
        import readline  # noqa: F401, input() uses it once it is there
    with _shown_on_a_terminal():
        return input(sign)


def typed_text() -> str:
    """What stood in the line that Ctrl+C has ended."""
    with suppress(ImportError):
        import readline

        return readline.get_line_buffer()
    return ""


@contextmanager
def _shown_on_a_terminal() -> Iterator[None]:
    """Editing needs a terminal at file 1: stderr's, where stdout goes to a file or pipe."""
    if os.isatty(1) or not os.isatty(2):
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
