"""Writes a turn into the store as its events come, before anybody else sees them."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from dspark.chat.ask import LeftOut
from dspark.chat.backend import ChatEvent
from dspark.chat.conversation import Conversation, Turn
from dspark.chat.sessions.store import ChatStore, title_of
from dspark.chat.sessions.turn_records import is_kept, written
from dspark.events import Finished


@dataclass
class Recording:
    """Of one answer. If the file cannot be written, the answer goes on without it: `failure` says
    why."""

    store: ChatStore
    turn: Turn
    failure: str = ""

    def begin(self, conversation: Conversation, settings: str, model: str) -> None:
        """The turn follows the last one of the conversation, which gets a place in the store."""
        try:
            if conversation.saved_id is None:
                conversation.title = conversation.title or title_of(self.turn.prompt)
                conversation.saved_id = self.store.add_chat(conversation.title, settings)
            before = conversation.turns[-1].saved_id if conversation.turns else None
            self.turn.saved_id = self.store.begin_turn(
                conversation.saved_id, before, self.turn, model
            )
        except sqlite3.Error as error:
            self.failure = str(error)

    def of(self, events: Iterable[LeftOut | ChatEvent]) -> Iterator[LeftOut | ChatEvent]:
        """The same events, each once it is written. An answer that has said nothing at its end, or
        that failed, leaves nothing."""
        number = 0
        try:
            for event in events:
                if not isinstance(event, LeftOut) and is_kept(event):
                    self._add(number, event)
                    number += 1
                yield event
        except Exception:
            self._store(self.store.drop_turn)
            raise

    def _add(self, number: int, event: ChatEvent) -> None:
        self._store(lambda turn: self.store.add_event(turn, number, written(event)))
        if not isinstance(event, Finished):
            return
        answer = self.turn.opening + event.text
        if answer.strip():
            self._store(lambda turn: self.store.end_turn(turn, answer))
        else:
            self._store(self.store.drop_turn)

    def _store(self, write: Callable[[int], None]) -> None:
        if self.failure or self.turn.saved_id is None:
            return
        try:
            write(self.turn.saved_id)
        except sqlite3.Error as error:
            self.failure = str(error)
