"""Commands to the chat itself, not to the model: /help, /bye and their aliases."""

import re
from typing import Literal

Command = Literal["help", "quit", "unknown"]

HELP_NAMES = ("/help", "/?")
QUIT_NAMES = ("/bye", "/exit", "/quit")
# One word with one slash: a path or a sentence that begins with a slash is a prompt.
_WORD = re.compile(r"/[\w?!.-]*")


def parse_command(text: str) -> Command | None:
    """None for a prompt, which goes to the model."""
    word = text.strip().lower()
    if word in HELP_NAMES:
        return "help"
    if word in QUIT_NAMES:
        return "quit"
    return "unknown" if _WORD.fullmatch(word) else None


def unknown_command(text: str) -> str:
    return f"There is no command {text.strip()[:20]}; /help lists the commands."
