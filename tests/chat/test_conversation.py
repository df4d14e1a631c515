"""What is shown and counted of a turn are views of its events; the model reads the texts alone."""

import pytest

from dspark.chat.ask import LeftOut, PendingAnswer
from dspark.chat.backend import ChatSettings, EngineBackend
from dspark.chat.conversation import Conversation, Turn
from dspark.chat.running_stats import NOTHING_YET
from dspark.chat.token_spans import marks_of
from dspark.config import EngineConfig, RuntimeConfig, ScheduleConfig, StopConfig
from dspark.events import Finished, Piece, TextDelta
from dspark.hub import PairFiles
from tests.work import done

SUMS = ("new_tokens", "rounds", "drafted", "verified", "accepted")


def finished(text: str, reason="stop_token") -> Finished:
    return Finished(0, reason, (), text, NOTHING_YET)


def test_the_views_of_a_turn_agree_with_what_the_engine_says_at_its_end(
    tiny_chat_dir, make_tiny_head
):
    files = PairFiles("tiny", tiny_chat_dir, make_tiny_head(tiny_chat_dir))
    backend = EngineBackend(
        name="tiny",
        find_files=lambda: done(files),
        runtime=RuntimeConfig(device="cpu", dtype="float32"),
        engine=EngineConfig(schedule=ScheduleConfig(mode="full")),
    )
    list(backend.load())
    conversation, turn = Conversation(), Turn("Hello")
    settings = ChatSettings(stop=StopConfig(max_tokens=24, ignore_stop_tokens=True))
    *events, end = PendingAnswer(backend, conversation.with_prompt("Hello"), settings)
    for event in events:
        conversation.take(turn, event)
    assert turn.finished is None and conversation.turns == []
    for name in SUMS:
        assert getattr(turn.stats, name) == getattr(end.stats, name), name
    assert turn.context_tokens == end.stats.prompt_tokens + end.stats.new_tokens
    assert end.text == turn.text + end.tail
    conversation.take(turn, end)
    assert turn.stats == end.stats and turn.text == end.text and conversation.turns == [turn]
    shown = [m.text for e in turn.events for m in marks_of(e) if m.kind != "rejected"]
    assert "".join(shown) == "".join(mark.text for mark in marks_of(plain(end.text)))
    backend.close()


def plain(text: str) -> TextDelta:
    return TextDelta(0, (Piece(-1, text, False),), 0.0)


def test_a_servers_text_has_a_rate_and_no_rounds():
    turn = Turn("Hi")
    for word, seconds in (("One", 0.0), (" two", 0.5), (" three", 0.5)):
        turn.add(TextDelta(0, (Piece(-1, word, False),), seconds))
    assert turn.text == "One two three" and turn.context_tokens == 3
    assert turn.stats.rounds == 0 and turn.stats.decode_tokens_per_second == pytest.approx(2.0)


def test_thinking_is_no_text():
    turn = Turn("Hi")
    turn.add(TextDelta(0, (Piece(-1, "Hm", False, is_thinking=True), Piece(-1, "Yes", False)), 0.0))
    assert turn.text == "Yes"


def test_an_answer_without_text_is_not_read_by_the_model():
    conversation = Conversation(system="Be brief.")
    conversation.take(Turn("One"), finished(" \n", "cancelled"))
    conversation.take(Turn("Two"), finished("2"))
    assert [m["content"] for m in conversation.with_prompt("Three")] == [
        *("Be brief.", "Two", "2", "Three")
    ]


def test_turns_that_were_left_out_stay_in_the_conversation():
    conversation = Conversation()
    for number in range(4):
        conversation.take(Turn(f"prompt {number}"), finished(f"answer {number}"))
    conversation.take(Turn("next"), LeftOut(3))
    read = [message["content"] for message in conversation.with_prompt("next")]
    assert read == ["prompt 3", "answer 3", "next"] and len(conversation.turns) == 4
