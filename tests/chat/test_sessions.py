"""Chats in a file: what was said is there again, whatever ended the program."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dspark.chat.ask import LeftOut
from dspark.chat.conversation import Conversation, Turn
from dspark.chat.sessions.recording import Recording
from dspark.chat.sessions.schema import UPGRADES
from dspark.chat.sessions.store import ChatStore
from dspark.events import DecodeStats, Finished, Piece, PrefillProgress, Round

STATS = DecodeStats(3, 3, 1, 2, 2, 1, 0.5, 0.25)
FIRST = PrefillProgress(0, 3, 3, (Piece(7, "Grün", False),))
ROUND = Round(
    request_id=0,
    index=0,
    anchor=7,
    draft=(8, 9),
    confidence=(0.5, 0.25),
    verified=2,
    accepted=1,
    next=11,
    pieces=(Piece(8, " ist", True, 0.5), Piece(11, " gut", False)),
    rejected=(Piece(9, "?", True, 0.25),),
    context_tokens=6,
    draft_seconds=0.001,
    verify_seconds=0.002,
    seconds=0.004,
)


def finished(text, reason="stop_token"):
    return Finished(0, reason, (7, 8, 11), text, STATS)


def say(store, conversation, prompt, *events, opening=""):
    """A prompt and its answer, as a front end has them stored."""
    turn = Turn(prompt, opening=opening)
    recording = Recording(store, turn)
    recording.begin(conversation, "{}", "demo")
    for event in recording.of(iter(events or (FIRST, ROUND, finished(f"Re: {prompt}")))):
        conversation.take(turn, event)
    assert not recording.failure
    return turn


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "chats.sqlite"


@pytest.fixture
def store(path):
    with closing(ChatStore(path)) as store:
        yield store


def reopened(store, path):
    store.close()
    return ChatStore(path)


def test_a_chat_is_there_again_with_every_event(store, path):
    conversation = Conversation()
    events = (PrefillProgress(0, 1, 3), LeftOut(1), FIRST, ROUND, finished("Grün ist gut"))
    first = say(store, conversation, "Wie ist Grün?", *events)
    say(store, conversation, "Und Rot?")
    store = reopened(store, path)
    ((chat, title, model, count, _),) = [
        (each.id, each.title, each.model, each.num_turns, each.updated) for each in store.chats()
    ]
    assert (title, model, count) == ("Wie ist Grün?", "demo", 2)
    again = store.load(chat)
    assert [turn.prompt for turn in again.turns] == ["Wie ist Grün?", "Und Rot?"]
    assert again.turns[0].events == [FIRST, ROUND, finished("Grün ist gut")]
    assert again.turns[0].stats == first.stats
    assert again.with_prompt("x")[1]["content"] == "Grün ist gut"
    store.close()


def test_ended_answers_are_stored_compressed(store, path):
    say(store, Conversation(), "Go", FIRST, *[ROUND] * 500, finished("x"))
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT count(*) FROM events").fetchone() == (0,)
        ((length,),) = raw.execute("SELECT length(events) FROM turns")
    assert length < 500 * 20


def test_an_answer_that_said_nothing_or_failed_leaves_nothing(store):
    conversation = Conversation()
    say(store, conversation, "First")
    say(store, conversation, "Stopped", finished("", "cancelled"))

    def failing():
        yield FIRST
        raise RuntimeError("boom")

    turn = Turn("Failed")
    recording = Recording(store, turn)
    recording.begin(conversation, "{}", "demo")
    with pytest.raises(RuntimeError):
        list(recording.of(failing()))
    assert [turn.prompt for turn in store.load(conversation.saved_id).turns] == ["First"]
    assert store.unanswered(conversation.saved_id) == ""


def test_versions_stand_beside_each_other_with_what_was_said_after(store):
    conversation = Conversation()
    first = say(store, conversation, "First")
    second = say(store, conversation, "Second")
    say(store, conversation, "Third")
    chat = conversation.saved_id
    del conversation.turns[1:]
    edited = say(store, conversation, "Zweite")
    assert store.versions(second.saved_id) == [second.saved_id, edited.saved_id]
    assert store.versions(first.saved_id) == [first.saved_id]
    assert [turn.prompt for turn in store.load(chat).turns] == ["First", "Zweite"]
    store.show_version(second.saved_id)
    assert [turn.prompt for turn in store.load(chat).turns] == ["First", "Second", "Third"]
    del conversation.turns[:]
    other = say(store, conversation, "Other first")
    assert store.versions(first.saved_id) == [first.saved_id, other.saved_id]


def test_a_fork_is_a_chat_of_its_own(store):
    conversation = Conversation()
    first = say(store, conversation, "First", FIRST, ROUND, finished("One"))
    say(store, conversation, "Second")
    fork = store.fork(conversation.saved_id, first.saved_id, "Fork")
    copy = store.load(fork)
    assert [turn.prompt for turn in copy.turns] == ["First"]
    assert copy.turns[0].events == [FIRST, ROUND, finished("One")]
    say(store, copy, "Elsewhere")
    store.delete(conversation.saved_id)
    assert [turn.prompt for turn in store.load(fork).turns] == ["First", "Elsewhere"]
    assert store.load(conversation.saved_id) is None


def test_a_deleted_chat_comes_back_until_the_program_ends(store, path):
    conversation = Conversation()
    say(store, conversation, "Secret")
    store.delete(conversation.saved_id)
    assert store.chats() == [] and store.search("secret") == [] and store.prompts() == []
    store.restore(conversation.saved_id)
    assert store.search("secret")[0].chat == conversation.saved_id
    store.delete(conversation.saved_id)
    store = reopened(store, path)
    store.restore(conversation.saved_id)
    assert store.chats() == []
    store.close()
    assert b"Secret" not in path.read_bytes()


def test_every_chat_is_searched_by_the_beginnings_of_words(store):
    rivers, birds = Conversation(), Conversation()
    say(store, rivers, "Name rivers", FIRST, finished("The Danube\nflows to the Black Sea."))
    say(store, rivers, "And more", FIRST, finished("Moselle, Danube again"))
    say(store, birds, "Name birds", FIRST, finished('The "blackbird" sings; Müller said so.'))
    assert [found.title for found in store.search("danu")] == ["Name rivers"]
    assert "\x02Danube\x03" in store.search("danube sea")[0].passage
    assert {found.title for found in store.search("black")} == {"Name rivers", "Name birds"}
    assert [found.title for found in store.search("MULLER")] == ["Name birds"]
    assert store.search("danube blackbird") == [] and store.search("  ") == []
    assert store.search('"x" AND (') == []
    store.rename(birds.saved_id, "Ornithology")
    assert [found.title for found in store.search("ornith")] == ["Ornithology"]


def test_prompts_of_all_chats_are_recalled_each_once(store):
    one, two = Conversation(), Conversation()
    for conversation, prompt in ((one, "a"), (two, "b"), (one, "a"), (two, "c"), (one, "b")):
        say(store, conversation, prompt)
    assert store.prompts() == ["a", "c", "b"]


@pytest.mark.parametrize("version", range(1, len(UPGRADES)))
def test_a_file_of_an_older_version_is_upgraded(path, version):
    """`old_chats_N.sql` is what version N wrote."""
    path.parent.mkdir()
    dump = Path(__file__).with_name(f"old_chats_{version}.sql").read_text(encoding="utf-8")
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(dump)
    with closing(ChatStore(path)) as store:
        assert store.notice == "" and store.is_kept
        (summary,) = store.chats()
        (turn,) = store.load(summary.id).turns
        assert (summary.title, turn.prompt, turn.text) == ("Old", "Old question?", "Grün ist gut")
        assert turn.events[1] == ROUND
        assert [found.chat for found in store.search("grun")] == [summary.id]
        conversation = store.load(summary.id)
        say(store, conversation, "New question?")
        assert len(store.load(summary.id).turns) == 2


def test_a_file_of_a_newer_version_is_left_alone(store, path):
    store.close()
    with closing(sqlite3.connect(path)) as raw:
        raw.execute(f"PRAGMA user_version = {len(UPGRADES) + 1}")
    before = path.read_bytes()
    with closing(ChatStore(path)) as newer:
        assert "newer version of dspark" in newer.notice and not newer.is_kept
        say(newer, Conversation(), "Go")
        assert len(newer.chats()) == 1
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_set_aside_and_named(path):
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    (other := path.parent / "pairs.txt").write_text("untouched")
    with closing(ChatStore(path)) as store:
        (aside,) = path.parent.glob("chats-damaged-*.sqlite")
        assert store.notice.startswith("chats.sqlite was damaged and is kept as chats-damaged-")
        assert "\n" not in store.notice and aside.read_bytes() == b"no database" * 1000
        say(store, Conversation(), "Go")
        assert store.is_kept and len(store.chats()) == 1
    assert other.read_text() == "untouched"


def test_what_can_be_read_of_a_damaged_file_is_kept(store, path):
    for number in range(40):
        say(store, Conversation(), f"Question {number}", FIRST, finished(f"{number} " * 400))
    store.close()
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 8192] = b"\xff" * 8192
    path.write_bytes(data)
    with closing(ChatStore(path)) as store:
        assert "was damaged" in store.notice
        kept = [chat for chat in store.chats() if store.load(chat.id).turns]
        assert 20 < len(kept) < 40 and f"{len(kept)} chats could be read" in store.notice


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_storing(tmp_path):
    (blocked := tmp_path / "file").write_text("")
    with closing(ChatStore(blocked / "chats.sqlite")) as store:
        assert "this chat is not stored" in store.notice and not store.is_kept
        say(store, Conversation(), "Go")
        assert len(store.chats()) == 1


def test_a_full_disk_ends_the_storing_not_the_answer(store):
    conversation, turn = Conversation(), Turn("Go")
    recording = Recording(store, turn)
    recording.begin(conversation, "{}", "demo")
    store._database.execute("PRAGMA max_page_count = 1")
    events = (FIRST, *[ROUND] * 400, finished("x"))
    assert tuple(recording.of(iter(events))) == events
    assert "full" in recording.failure


WRITER = """
import sys
from dspark.chat.conversation import Conversation, Turn
from dspark.chat.sessions.recording import Recording
from dspark.chat.sessions.store import ChatStore
from pathlib import Path
from tests.chat.test_sessions import FIRST, ROUND
conversation, turn = Conversation(), Turn("Endless")
store = ChatStore(Path(sys.argv[1]))
recording = Recording(store, turn)
recording.begin(conversation, "{}", "demo")
def endless():
    yield FIRST
    while True:
        yield ROUND
for number, event in enumerate(recording.of(endless())):
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


def killed_while_writing(path, at_round) -> int:
    """The number of events that were told of before kill -9."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        for _ in range(at_round):
            told = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().splitlines(keepends=True)
    whole = [int(line) for line in rest if line.endswith(b"\n")]
    return (whole or [told])[-1] + 1


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.long)])
def test_a_killed_program_loses_no_round_that_it_told_of(path, times):
    for number in range(times):
        told = killed_while_writing(path, at_round=2 + number * 7)
        with closing(ChatStore(path)) as store:
            assert store.notice == ""
            (*_, last) = sorted(store.chats(), key=lambda chat: chat.id)
            assert len(store.chats()) == number + 1
            (turn,) = store.load(last.id).turns
            assert turn.events[:2] == [FIRST, ROUND]
            assert told <= len(turn.events) - 1 <= told + 1
            assert turn.finished.reason == "cancelled" and turn.text.startswith("Grün ist gut")
            assert last.id in {found.chat for found in store.search("grün")}
