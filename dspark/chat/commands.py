"""Commands to the chat itself, not to the model, as ollama has them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Usage:
    """`argument` as it is shown, "" for a command that takes none; `in_plain`: without a screen
    too."""

    meaning: str
    argument: str = ""
    in_plain: bool = False


COMMANDS: Mapping[str, Usage] = {
    "/help": Usage("Keys and commands", in_plain=True),
    "/set": Usage("Change a setting; the value default undoes it", "NAME VALUE", in_plain=True),
    "/show": Usage("The settings and the model", in_plain=True),
    "/clear": Usage("Begin a new chat", in_plain=True),
    "/save": Usage("Name this chat, or write it to FILE.md or FILE.json", "NAME or FILE"),
    "/load": Usage("Open the chat with that name, or one from FILE.json", "NAME or FILE"),
    "/search": Usage("Find words in all chats", "WORDS"),
    "/delete": Usage("Delete this chat"),
    "/fork": Usage("A new chat with everything up to prompt N", "[N]"),
    "/edit": Usage("Edit prompt N, or the last one, and ask again", "[N]"),
    "/regenerate": Usage("Answer the last prompt again"),
    "/continue": Usage("Edit the last answer, and let the model continue it"),
    "/copy": Usage("Copy the last answer, or its code block N", "[N]"),
    "/race": Usage("Let plain decoding, or HEAD, race with the drafter", "[HEAD]"),
    "/model": Usage("Change to another model", "NAME"),
    "/bye": Usage("Quit", in_plain=True),
}
OTHER_NAMES = {"/?": "/help", "/exit": "/bye", "/quit": "/bye", "/new": "/clear"}
# One word with one slash: a path or a sentence that begins with a slash is a prompt.
_WORD = re.compile(r"/[\w?!.-]*")
_LETTERS = re.compile(r"/[A-Za-z]{1,40}")


@dataclass(frozen=True, slots=True)
class Command:
    """`name` is one of COMMANDS, or "" for an unknown one."""

    name: str
    argument: str = ""


def parse_command(text: str, *, in_plain: bool = False) -> Command | None:
    """None for a prompt, which goes to the model: what is longer than a command is one."""
    word, _, argument = text.strip().partition(" ")
    name = OTHER_NAMES.get(word.lower(), word.lower())
    usage = COMMANDS.get(name)
    if usage is not None and (usage.in_plain or not in_plain):
        is_command = not argument or (bool(usage.argument) and "\n" not in word)
        return Command(name, argument.strip()) if is_command else None
    return Command("") if _is_meant_as_one(text.strip()) else None


def _is_meant_as_one(text: str) -> bool:
    """A misspelt command, not a path; a command that takes no argument begins a sentence."""
    word = text.split(maxsplit=1)[0] if text else ""
    if not _WORD.fullmatch(word) or (word != "/" and Path(word).exists()):
        return False
    if word == text:
        return True
    is_known = word.lower() in {*COMMANDS, *OTHER_NAMES}
    return not is_known and (bool(_LETTERS.fullmatch(word)) or bool(_close_to(word)))


def _close_to(word: str, *, in_plain: bool = False) -> list[str]:
    names = [name for name, usage in COMMANDS.items() if usage.in_plain or not in_plain]
    return get_close_matches(word.lower(), [*names, *OTHER_NAMES], n=1)


def unknown_command(text: str, *, in_plain: bool = False) -> str:
    """Of a text whose first word is no command, or none without a screen."""
    word = text.split(maxsplit=1)[0][:20]
    if close := _close_to(word, in_plain=in_plain):
        return f"There is no command {word}. Did you mean {close[0]}?"
    return f"There is no command {word}; /help lists the commands."


def completions(text: str) -> list[str]:
    """The commands that begin like this."""
    return [name for name in COMMANDS if name.startswith(text.lower())]
