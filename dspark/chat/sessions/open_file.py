"""Opening the file of chats: a damaged one is set aside, and what can be read of it is copied."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path

from dspark.chat.sessions.schema import NewerSchemaError, upgrade
from dspark.plural import counted

DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
CHECKED_BYTES = 64 * 2**20  # checking takes about 1 ms per MiB
BUSY_SECONDS = 5.0
COMPANIONS = ("", "-wal", "-shm")
COLUMNS = {
    "chats": "id, title, settings, leaf, updated, deleted",
    "turns": "id, chat, parent, prompt, opening, model, answer, events",
    "events": "turn, number, record",
}


def open_memory() -> sqlite3.Connection:
    """Chats that end with the program."""
    return _opened(":memory:")


def open_file(path: Path) -> tuple[sqlite3.Connection, str]:
    """The database, and a line on what happened to a damaged one, or "".

    Raises OSError, sqlite3.Error or NewerSchemaError if chats cannot be stored there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _checked(path), ""
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode not in DAMAGED:
            raise
    aside = _set_aside(path)
    database = _checked(path)
    saved = _copy_readable(aside, database)
    return database, (
        f"{path.name} was damaged and is kept as {aside.name}; "
        f"{counted(saved, 'chat')} could be read from it."
    )


def _checked(path: Path) -> sqlite3.Connection:
    database = _opened(str(path))
    try:
        if path.stat().st_size <= CHECKED_BYTES:
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                damaged = sqlite3.DatabaseError(verdict)
                damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise damaged
    except sqlite3.Error:
        database.close()
        raise
    return database


def _opened(name: str) -> sqlite3.Connection:
    """For several threads; whoever uses it holds a lock."""
    database = sqlite3.connect(
        name, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")  # a killed program loses nothing committed
        database.execute("PRAGMA wal_autocheckpoint = 0")  # done between answers
        database.execute("PRAGMA foreign_keys = ON")
        database.execute("PRAGMA secure_delete = ON")
        upgrade(database)
    except (sqlite3.Error, NewerSchemaError):
        database.close()
        raise
    return database


def _set_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.stem}-damaged-{datetime.now():%Y%m%d-%H%M%S-%f}{path.suffix}")
    for companion in COMPANIONS:
        with suppress(FileNotFoundError):
            Path(f"{path}{companion}").rename(f"{aside}{companion}")
    return aside


def _copy_readable(damaged: Path, database: sqlite3.Connection) -> int:
    """The number of chats of which something could be read."""
    with closing(sqlite3.connect(damaged)) as source:
        for table, columns in COLUMNS.items():
            marks = ", ".join("?" for _ in columns.split(","))
            insert = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"
            for row in _readable_rows(source, table, columns):
                with suppress(sqlite3.Error):  # of a chat that could not be read
                    database.execute(insert, row)
    (count,) = database.execute("SELECT count(DISTINCT chat) FROM turns").fetchone()
    return int(count)


def _readable_rows(
    source: sqlite3.Connection, table: str, columns: str
) -> Iterator[tuple[object, ...]]:
    """From both ends up to the damage."""
    first = columns.split(",")[0]
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.Error):
            yield from source.execute(f"SELECT {columns} FROM {table} ORDER BY {first} {order}")
