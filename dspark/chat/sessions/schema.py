"""The tables of stored chats, as numbered upgrades: the file's `user_version` says how many it has.

A turn belongs to a chat and follows its `parent`; turns with one parent are versions of each other.
The chat shows the turns from its `leaf` upwards. The events of an answer under way are rows, which
become one blob when it ends.
"""

import sqlite3

UPGRADES = (
    """
    CREATE TABLE chats (
        id INTEGER PRIMARY KEY,
        title TEXT NOT NULL,
        settings TEXT NOT NULL DEFAULT '{}',
        leaf INTEGER,
        updated REAL NOT NULL,
        deleted REAL
    );
    CREATE TABLE turns (
        id INTEGER PRIMARY KEY,
        chat INTEGER NOT NULL REFERENCES chats ON DELETE CASCADE,
        parent INTEGER,
        prompt TEXT NOT NULL,
        opening TEXT NOT NULL DEFAULT '',
        model TEXT NOT NULL DEFAULT '',
        answer TEXT,
        events BLOB
    );
    CREATE INDEX turns_of_chat ON turns (chat, parent);
    CREATE TABLE events (
        turn INTEGER NOT NULL REFERENCES turns ON DELETE CASCADE,
        number INTEGER NOT NULL,
        record TEXT NOT NULL,
        PRIMARY KEY (turn, number)
    ) WITHOUT ROWID;
    """,
    """
    CREATE VIRTUAL TABLE texts USING fts5 (
        prompt, answer, content='turns', content_rowid='id',
        tokenize='unicode61 remove_diacritics 2'
    );
    CREATE TRIGGER turns_added AFTER INSERT ON turns BEGIN
        INSERT INTO texts (rowid, prompt, answer) VALUES (new.id, new.prompt, new.answer);
    END;
    CREATE TRIGGER turns_removed AFTER DELETE ON turns BEGIN
        INSERT INTO texts (texts, rowid, prompt, answer)
        VALUES ('delete', old.id, old.prompt, old.answer);
    END;
    CREATE TRIGGER turns_changed AFTER UPDATE OF prompt, answer ON turns BEGIN
        INSERT INTO texts (texts, rowid, prompt, answer)
        VALUES ('delete', old.id, old.prompt, old.answer);
        INSERT INTO texts (rowid, prompt, answer) VALUES (new.id, new.prompt, new.answer);
    END;
    INSERT INTO texts (texts) VALUES ('rebuild');
    """,
)


class NewerSchemaError(Exception):
    """A file that a newer version wrote."""


def upgrade(database: sqlite3.Connection) -> None:
    """Each missing upgrade is applied whole or not at all."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > len(UPGRADES):
        raise NewerSchemaError
    for number, script in enumerate(UPGRADES[version:], start=version + 1):
        try:
            database.executescript(
                f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number};COMMIT;"
            )
        except sqlite3.Error:
            if database.in_transaction:
                database.rollback()
            if database.execute("PRAGMA user_version").fetchone()[0] < number:
                raise  # nobody else has upgraded it meanwhile
