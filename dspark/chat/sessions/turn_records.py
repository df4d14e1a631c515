"""The events of a turn as they are stored: records of docs/rounds.md, compressed at its end."""

import json
import zlib
from collections.abc import Iterable, Sequence

from dspark.chat.backend import ChatEvent
from dspark.chat.conversation import Turn
from dspark.events import Finished, PrefillProgress
from dspark.round_records import read_event, record_of

BROKEN = (ValueError, KeyError, TypeError, IndexError, AttributeError, zlib.error)


def is_kept(event: ChatEvent) -> bool:
    """A prompt's progress is not, except the event that carries the first token."""
    return not isinstance(event, PrefillProgress) or bool(event.pieces)


def written(event: ChatEvent) -> str:
    return json.dumps(record_of(event), separators=(",", ":"), ensure_ascii=False)


def packed(records: Iterable[str]) -> bytes:
    return zlib.compress("\n".join(records).encode())


def unpacked(blob: bytes) -> list[str]:
    return zlib.decompress(blob).decode().split("\n")


def read_turn(prompt: str, opening: str, records: Sequence[str]) -> Turn:
    """The turn that these records tell of; what cannot be read ends it. An answer that was broken
    off by the end of the program counts as stopped."""
    turn = Turn(prompt, opening=opening)
    for record in records:
        try:
            event = read_event(json.loads(record), request_id=0)
        except BROKEN:
            break
        turn.add(event)
    if turn.finished is None:
        ids = tuple(piece.token_id for piece in turn.pieces)
        turn.add(Finished(0, "cancelled", ids, turn.own_text, turn.stats, thinking=turn.thinking))
    return turn
