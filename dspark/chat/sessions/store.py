"""Chats in a file, from where any of them is continued: listed, searched, forked and removed."""

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark.chat.attachments import detach
from dspark.chat.conversation import Conversation, Turn
from dspark.chat.sessions.open_file import open_file, open_memory
from dspark.chat.sessions.schema import NewerSchemaError
from dspark.chat.sessions.turn_records import BROKEN, packed, read_turn, unpacked

FILE = "chats.sqlite"
UNKNOWN_MODEL = "unknown"  # of a chat from a file that does not tell it
TITLE_CHARACTERS = 60
RECALLED_PROMPTS = 500

# The turns from a chat's leaf up to its first one, numbered from the leaf.
PATH = """
    WITH RECURSIVE path (id, parent, depth) AS (
        SELECT id, parent, 0 FROM turns WHERE id = ?
        UNION ALL
        SELECT turns.id, turns.parent, depth + 1 FROM turns JOIN path ON turns.id = path.parent
    )
"""


@dataclass(frozen=True, slots=True)
class ChatSummary:
    """`updated` in seconds since 1970; `model` wrote the last answer."""

    id: int
    title: str
    model: str
    num_turns: int
    updated: float


@dataclass(frozen=True, slots=True)
class Found:
    """A chat with a passage that has the words, these between \\x02 and \\x03."""

    chat: int
    title: str
    passage: str


class ChatStore:
    """For several threads. Methods raise sqlite3.Error if the file cannot be read or written."""

    def __init__(self, path: Path | None = None) -> None:
        """Without a path, or if nothing can be stored there, chats end with the program; `notice`
        says so in one line."""
        self._lock = threading.RLock()
        self.notice = ""
        self.path = path  # None if nothing is stored
        self._database = open_memory() if path is None else self._opened(path)
        with self._lock:
            self._database.execute("DELETE FROM chats WHERE deleted IS NOT NULL")
        self._index_broken_off()

    @property
    def is_kept(self) -> bool:
        return self.path is not None

    def _opened(self, path: Path) -> sqlite3.Connection:
        try:
            database, self.notice = open_file(path)
            return database
        except NewerSchemaError:
            self.notice = f"{path} is of a newer version of dspark, so this chat is not stored."
        except (OSError, sqlite3.Error) as error:
            self.notice = f"{path} could not be opened, so this chat is not stored: {error}."
        self.path = None
        return open_memory()

    def close(self) -> None:
        """Closing again does nothing; an answer that is still written then loses its end."""
        with self._lock, suppress(sqlite3.Error):
            self._database.execute("DELETE FROM chats WHERE deleted IS NOT NULL")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._database.close()

    # All chats

    def chats(self) -> list[ChatSummary]:
        """The one written last comes first."""
        rows = self._rows(
            """
            SELECT chats.id, title, coalesce(
                (SELECT nullif(model, '') FROM turns WHERE turns.id = chats.leaf), ?
            ), (SELECT count(*) FROM turns WHERE chat = chats.id), updated
            FROM chats WHERE deleted IS NULL ORDER BY updated DESC, chats.id DESC
            """,
            UNKNOWN_MODEL,
        )
        return [ChatSummary(*row) for row in rows]

    def search(self, words: str) -> list[Found]:
        """The best passage of each chat in whose prompts, answers or title every word begins a
        word."""
        if not words.split():
            return []
        query = " ".join('"' + word.replace('"', '""') + '"*' for word in words.split())
        found = self._rows(
            """
            SELECT chats.id, title, snippet(texts, -1, char(2), char(3), '…', 12)
            FROM texts JOIN turns ON turns.id = texts.rowid JOIN chats ON chats.id = turns.chat
            WHERE texts MATCH ? AND deleted IS NULL ORDER BY rank
            """,
            query,
        )
        best = {row[0]: Found(row[0], row[1], " ".join(row[2].split())) for row in reversed(found)}
        titled = [
            Found(chat.id, chat.title, "")
            for chat in self.chats()
            if chat.id not in best
            and all(word in chat.title.lower() for word in words.lower().split())
        ]
        return [*reversed(best.values()), *titled]

    def prompts(self) -> list[str]:
        """Of all chats, the newest last, each once."""
        rows = self._rows(
            """
            SELECT prompt FROM turns JOIN chats ON chats.id = turns.chat WHERE deleted IS NULL
            GROUP BY prompt ORDER BY max(turns.id) DESC LIMIT ?
            """,
            RECALLED_PROMPTS,
        )
        return [row[0] for row in reversed(rows)]

    # One chat

    def add_chat(self, title: str, settings: str = "{}") -> int:
        return self._insert(
            "INSERT INTO chats (title, settings, updated) VALUES (?, ?, ?)",
            *(title_of(title), settings, time.time()),
        )

    def rename(self, chat: int, title: str) -> None:
        self._do("UPDATE chats SET title = ? WHERE id = ?", title_of(title), chat)

    def keep_settings(self, chat: int, settings: str) -> None:
        """A JSON object."""
        self._do("UPDATE chats SET settings = ? WHERE id = ?", settings, chat)

    def settings(self, chat: int) -> str:
        rows = self._rows("SELECT settings FROM chats WHERE id = ?", chat)
        return str(rows[0][0]) if rows else "{}"

    def delete(self, chat: int) -> None:
        """Until `restore`, or for good with the end of the program."""
        self._do("UPDATE chats SET deleted = ? WHERE id = ?", time.time(), chat)

    def restore(self, chat: int) -> None:
        self._do("UPDATE chats SET deleted = NULL WHERE id = ?", chat)

    def load(self, chat: int) -> Conversation | None:
        """With the turns that the chat shows; those without an answer are left out."""
        rows = self._rows("SELECT title, leaf FROM chats WHERE id = ? AND deleted IS NULL", chat)
        if not rows:
            return None
        title, leaf = rows[0]
        turns = [turn for turn in self._path(leaf) if turn.text.strip()]
        return Conversation(turns=turns, title=title, saved_id=chat)

    def unanswered(self, chat: int) -> str:
        """The prompt at the end of a chat whose answer had not begun when the program ended."""
        rows = self._rows("SELECT leaf FROM chats WHERE id = ?", chat)
        path = self._path(rows[0][0]) if rows else []
        return path[-1].prompt if path and not path[-1].text.strip() else ""

    def fork(self, chat: int, leaf: int | None, title: str) -> int:
        """A copy of the chat up to that turn."""
        with self._transaction():
            copy = self.add_chat(title, self.settings(chat))
            parent: int | None = None
            for turn in self._path_ids(leaf):
                parent = self._insert(
                    """
                    INSERT INTO turns (chat, parent, prompt, opening, model, answer, events)
                    SELECT ?, ?, prompt, opening, model, answer, events FROM turns WHERE id = ?
                    """,
                    *(copy, parent, turn),
                )
            self._do("UPDATE chats SET leaf = ? WHERE id = ?", parent, copy)
        return copy

    def add_whole(
        self, title: str, settings: str, model: str, turns: Sequence[tuple[Turn, list[str]]]
    ) -> int:
        """A chat that is complete already: turns, and the records of their events."""
        with self._transaction():
            chat, parent = self.add_chat(title, settings), None
            for turn, records in turns:
                parent = self.begin_turn(chat, parent, turn, model)
                for number, record in enumerate(records):
                    self.add_event(parent, number, record)
                self.end_turn(parent, read_turn(turn.prompt, turn.opening, records).text)
        return chat

    # One turn

    def begin_turn(self, chat: int, parent: int | None, turn: Turn, model: str) -> int:
        with self._transaction():
            new = self._insert(
                "INSERT INTO turns (chat, parent, prompt, opening, model) VALUES (?, ?, ?, ?, ?)",
                *(chat, parent, turn.prompt, turn.opening, model),
            )
            self._show(chat, new)
        return new

    def add_event(self, turn: int, number: int, record: str) -> None:
        self._do("INSERT INTO events VALUES (?, ?, ?)", turn, number, record)

    def end_turn(self, turn: int, answer: str) -> None:
        """Its events become one blob."""
        with self._transaction():
            rows = self._rows("SELECT record FROM events WHERE turn = ? ORDER BY number", turn)
            self._do(
                "UPDATE turns SET answer = ?, events = ? WHERE id = ?",
                *(answer, packed(row[0] for row in rows), turn),
            )
            self._do("DELETE FROM events WHERE turn = ?", turn)
        if not self._database.in_transaction:
            self._do("PRAGMA wal_checkpoint(PASSIVE)")

    def drop_turn(self, turn: int) -> None:
        """One that came to nothing."""
        with self._transaction():
            self._do(
                """
                UPDATE chats SET leaf = (SELECT parent FROM turns WHERE id = ?) WHERE leaf = ?
                """,
                *(turn, turn),
            )
            self._do("DELETE FROM turns WHERE id = ?", turn)

    def versions(self, turn: int) -> list[int]:
        """This turn and those beside it, the oldest first."""
        rows = self._rows(
            """
            SELECT other.id FROM turns JOIN turns AS other
            ON other.chat = turns.chat AND other.parent IS turns.parent
            WHERE turns.id = ? ORDER BY other.id
            """,
            turn,
        )
        return [row[0] for row in rows]

    def show_version(self, turn: int) -> None:
        """With what was last said after it."""
        with self._transaction():
            leaf: int | None = turn
            while leaf is not None:
                turn = leaf
                (leaf,) = self._rows("SELECT max(id) FROM turns WHERE parent = ?", turn)[0]
            ((chat,),) = self._rows("SELECT chat FROM turns WHERE id = ?", turn)
            self._show(chat, turn)

    def _show(self, chat: int, leaf: int | None) -> None:
        self._do("UPDATE chats SET leaf = ?, updated = ? WHERE id = ?", leaf, time.time(), chat)

    def _path_ids(self, leaf: int | None) -> list[int]:
        return [
            row[0] for row in self._rows(f"{PATH} SELECT id FROM path ORDER BY depth DESC", leaf)
        ]

    def _path(self, leaf: int | None) -> list[Turn]:
        rows = self._rows(
            f"""
            {PATH} SELECT turns.id, prompt, opening, events
            FROM path JOIN turns USING (id) ORDER BY depth DESC
            """,
            leaf,
        )
        return [self._turn(*row) for row in rows]

    def _turn(self, saved_id: int, prompt: str, opening: str, blob: bytes | None) -> Turn:
        turn = read_turn(prompt, opening, self._records(saved_id, blob))
        turn.saved_id = saved_id
        return turn

    def _records(self, turn: int, blob: bytes | None) -> Sequence[str]:
        if blob is not None:
            try:
                return unpacked(blob)
            except BROKEN:
                return ()
        rows = self._rows("SELECT record FROM events WHERE turn = ? ORDER BY number", turn)
        return [row[0] for row in rows]

    def _index_broken_off(self) -> None:
        """Makes answers that a killed program left found by `search`. One that another program is
        writing now is stored again when it ends."""
        rows = self._rows("SELECT id, prompt, opening, events FROM turns WHERE answer IS NULL")
        for row in rows:
            self._do("UPDATE turns SET answer = ? WHERE id = ?", self._turn(*row).text, row[0])

    def _rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()

    def _do(self, statement: str, *values: Any) -> None:
        with self._lock:
            self._database.execute(statement, values).fetchall()

    def _insert(self, statement: str, *values: Any) -> int:
        with self._lock:
            row = self._database.execute(statement, values).lastrowid
        assert row is not None
        return row

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Inside another one, a part of it."""
        with self._lock:
            if self._database.in_transaction:
                yield
                return
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.rollback()
                raise
            self._database.commit()


def title_of(prompt: str, characters: int = TITLE_CHARACTERS) -> str:
    """The first words of a prompt, in one line, without the files that it names."""
    line = " ".join(detach(prompt)[0].split())
    if len(line) <= characters:
        return line or "Untitled"
    return f"{line[: characters - 1].rsplit(' ', 1)[0]}…"
