"""Keys that are pressed before the screen of the chat is there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

STDIN, INPUT_FLAGS = 0, 0  # the latter's place in a terminal's attributes


@contextmanager
def keeping_enter() -> Iterator[None]:
    """Enter stays Enter. A terminal hands it to a program as a line feed, until the screen says
    otherwise, and there a line feed is Ctrl+J: a new line in place of sending."""
    try:
        import termios
    except ImportError:  # Windows, whose console keeps keys as keys
        yield
        return
    if not os.isatty(STDIN):
        yield
        return
    before = termios.tcgetattr(STDIN)
    keeping = before.copy()
    keeping[INPUT_FLAGS] &= ~termios.ICRNL
    termios.tcsetattr(STDIN, termios.TCSANOW, keeping)
    try:
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSANOW, before)
