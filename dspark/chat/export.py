"""A chat as a file: Markdown to read, JSON to keep and to load again."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dspark.atomic import replacing
from dspark.chat import settings as chat_settings
from dspark.chat.backend import ChatSettings
from dspark.chat.control_characters import one_line
from dspark.chat.conversation import Conversation, Turn
from dspark.chat.sessions.store import UNKNOWN_MODEL, ChatStore
from dspark.chat.sessions.turn_records import written
from dspark.errors import InputError

JSON, MARKDOWN = ".json", ".md"
VERSION = 1


def write(path: Path, conversation: Conversation, settings: ChatSettings, model: str) -> None:
    """Completely or not at all, in the format that the path ends in; `model` wrote the last
    answer. Raises InputError."""
    text = WRITERS[path.suffix](conversation, settings, model)
    try:
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} could not be written: {error.strerror}", "Name another file."
        ) from error


def as_markdown(conversation: Conversation, settings: ChatSettings, model: str) -> str:
    """Prompts as quotations, answers as they are, without thinking."""
    parts = [f"# {conversation.title}", f"*Model:* {model}"]
    if settings.system:
        parts.append(f"*System prompt:* {settings.system}")
    for turn in conversation.turns:
        parts.append("\n".join(f"> {line}".rstrip() for line in turn.prompt.split("\n")))
        parts.append(turn.text.strip())
    return "\n\n".join(parts) + "\n"


def as_json(conversation: Conversation, settings: ChatSettings, model: str) -> str:
    """With every event, in the format of docs/rounds.md."""
    chat = {
        "dspark_chat": VERSION,
        "title": conversation.title,
        "model": model,
        "settings": json.loads(chat_settings.as_json(settings)),
        "turns": [
            {
                "prompt": turn.prompt,
                "opening": turn.opening,
                "answer": turn.text,
                "thinking": turn.thinking,
                "events": [json.loads(written(event)) for event in turn.events],
            }
            for turn in conversation.turns
        ],
    }
    return json.dumps(chat, ensure_ascii=False, indent=1) + "\n"


WRITERS: Mapping[str, Callable[[Conversation, ChatSettings, str], str]] = {
    MARKDOWN: as_markdown,
    JSON: as_json,
}


def read(path: Path, store: ChatStore) -> int:
    """Puts an exported chat into the store, as a new one. Raises InputError."""
    try:
        chat = json.loads(path.read_text(encoding="utf-8"))
        if chat["dspark_chat"] != VERSION:
            raise ValueError
        turns = [_turn(each) for each in chat["turns"]]
        title, settings = str(chat["title"]), json.dumps(chat["settings"])
        model = one_line(str(chat.get("model", ""))) or UNKNOWN_MODEL
    except OSError as error:
        raise InputError(
            f"{path} could not be read: {error.strerror}", "Check the path."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a chat of dspark", "/save FILE.json writes one."
        ) from error
    return store.add_whole(title, settings, model, turns)


def _turn(record: Mapping[str, Any]) -> tuple[Turn, list[str]]:
    events = [json.dumps(each, ensure_ascii=False) for each in record["events"]]
    return Turn(str(record["prompt"]), opening=str(record["opening"])), events
