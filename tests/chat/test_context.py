"""A full context is no dead end: the oldest turns make way, and the reader is told."""

from itertools import pairwise

import pytest

from dspark.chat.ask import LeftOut, PendingAnswer
from dspark.chat.backend import ChatSettings, ContextFullError, EngineBackend
from dspark.chat.conversation import Conversation, Turn
from dspark.chat.running_stats import NOTHING_YET
from dspark.config import EngineConfig, RuntimeConfig, SamplingChoice, ScheduleConfig, StopConfig
from dspark.events import Finished
from dspark.hub import PairFiles
from tests.work import done


@pytest.fixture
def tiny(tiny_chat_dir):
    """512 tokens of context, and each byte of text is one of them."""
    backend = EngineBackend(
        name="tiny",
        find_files=lambda: done(PairFiles("tiny", tiny_chat_dir, None)),
        runtime=RuntimeConfig(device="cpu", dtype="float32"),
        engine=EngineConfig(schedule=ScheduleConfig(mode="full")),
    )
    list(backend.load())
    yield backend
    backend.close()


def talked(turns: int, size: int, system: str = "") -> Conversation:
    conversation = Conversation(system)
    for number in range(turns):
        conversation.turns.append(
            answered(f"{number}".ljust(size, "?"), f"{number}".ljust(size, "!"))
        )
    return conversation


def answered(prompt: str, text: str) -> Turn:
    return Turn(prompt, [Finished(0, "stop_token", (), text, NOTHING_YET)])


def short(max_tokens: int | None = 4) -> ChatSettings:
    return ChatSettings(stop=StopConfig(max_tokens=max_tokens, ignore_stop_tokens=True))


def test_the_oldest_half_makes_way_and_the_system_prompt_stays(tiny, monkeypatch):
    conversation = talked(8, 30, system="Be brief.")
    sent = []
    encode = tiny.session.encode_chat
    monkeypatch.setattr(
        tiny.session, "encode_chat", lambda messages, **_: sent.append(messages) or encode(messages)
    )
    left_out, *_, finished = PendingAnswer(tiny, conversation.with_prompt("Now?"), short())
    assert left_out == LeftOut(4)
    assert isinstance(finished, Finished) and finished.reason == "max_tokens"
    system, oldest, *_, prompt = (message["content"] for message in sent[-1])
    assert (system, oldest[0], prompt) == ("Be brief.", "4", "Now?")
    # What was left out stays out, so that the next prompt continues the same text.
    turn = Turn("Now?")
    conversation.take(turn, left_out)
    conversation.take(turn, finished)
    again = conversation.with_prompt("And now?")
    assert again[: len(sent[-1])] == sent[-1]
    first, *_ = PendingAnswer(tiny, again, short())
    assert not isinstance(first, LeftOut)


def test_an_answer_has_room_even_if_the_prompt_alone_would_fit(tiny):
    """A quarter of the context, or all that may be written if that is less."""
    conversation = talked(2, 90)
    messages = conversation.with_prompt("Now?")
    size = len(tiny.session.encode_chat(messages))
    room = 512 - size
    assert 4 < room < 128
    first, *_ = PendingAnswer(tiny, messages, short(room))
    assert not isinstance(first, LeftOut)
    for max_tokens in (room + 1, None):
        first, *_ = PendingAnswer(tiny, messages, short(max_tokens))
        assert first == LeftOut(1)


def test_a_conversation_that_outgrows_the_context_goes_on_and_steps_are_large(tiny):
    conversation, steps = Conversation(), []
    for number in range(24):
        events = list(
            PendingAnswer(tiny, conversation.with_prompt(f"prompt {number}".ljust(40)), short(20))
        )
        left_out = [event for event in events if isinstance(event, LeftOut)]
        for event in left_out:
            conversation.take(Turn(""), event)
        steps.append(bool(left_out))
        conversation.turns.append(answered(f"prompt {number}".ljust(40), "answer".ljust(20)))
    assert any(steps)
    # Never twice in a row, which would read nearly all of it anew at each turn.
    assert not any(a and b for a, b in pairwise(steps))
    assert len(conversation.turns) == 24


def test_a_prompt_that_fills_nearly_all_is_answered_alone(tiny):
    conversation = talked(3, 20)
    first, *others, finished = PendingAnswer(tiny, conversation.with_prompt("x" * 440), short(None))
    assert first == LeftOut(3) and not any(isinstance(each, LeftOut) for each in others)
    assert isinstance(finished, Finished) and finished.reason == "context"


def test_a_prompt_that_never_fits_says_what_to_do_and_leaves_nothing_out(tiny):
    conversation, told = talked(3, 20), []
    with pytest.raises(ContextFullError, match="but the context holds 512") as caught:
        for event in PendingAnswer(tiny, conversation.with_prompt("x" * 600), short()):
            told.append(event)
    assert told == []
    assert "Shorten it" in caught.value.hint


def test_an_answer_ends_by_the_context_without_max_tokens(tiny):
    *_, finished = PendingAnswer(tiny, Conversation().with_prompt("Hello"), short(None))
    assert finished.reason == "context"
    assert finished.stats.prompt_tokens + finished.stats.new_tokens == 513


def test_the_models_own_sampling_holds_until_the_user_chooses(tiny, monkeypatch):
    from dspark.config import SamplingConfig

    used = []
    monkeypatch.setattr(tiny.session, "sampling_defaults", SamplingConfig(0.6, 20, 0.9))
    monkeypatch.setattr(
        tiny.session, "generate", lambda ids, sampling, stop, **_: iter([used.append(sampling)])
    )
    for choice in (SamplingChoice(), SamplingChoice(temperature=0.0), SamplingChoice(top_k=0)):
        list(tiny.answer([{"role": "user", "content": "Hi"}], choice, StopConfig()))
    assert used == [
        SamplingConfig(0.6, 20, 0.9),
        SamplingConfig(0.0, 20, 0.9),
        SamplingConfig(0.6, 0, 0.9),
    ]
    assert tiny.info.sampling == SamplingConfig(0.6, 20, 0.9)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, "the model no longer sees the oldest prompt and its answer."),
        (3, "the model no longer sees the 3 oldest prompts and their answers."),
    ],
)
def test_plurals(count, said):
    assert str(LeftOut(count)) == f"The context is full: {said}"
