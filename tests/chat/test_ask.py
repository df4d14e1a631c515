"""A cancel holds whenever it comes: before the backend is asked, as it reads the prompt, later."""

import threading

import pytest

from dspark.chat.ask import PendingAnswer
from dspark.chat.backend import ChatSettings, EngineBackend
from dspark.chat.settings import changed
from dspark.config import EngineConfig, RuntimeConfig, ScheduleConfig, StopConfig
from dspark.errors import InputError
from dspark.events import Finished, Round
from dspark.hub import PairFiles
from tests.work import done

SETTINGS = ChatSettings(stop=StopConfig(max_tokens=40, ignore_stop_tokens=True))
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def engine(tiny_chat_dir):
    backend = EngineBackend(
        name="tiny",
        find_files=lambda: done(PairFiles("tiny", tiny_chat_dir, None)),
        runtime=RuntimeConfig(device="cpu", dtype="float32"),
        engine=EngineConfig(schedule=ScheduleConfig(mode="full")),
    )
    list(backend.load())
    yield backend
    backend.close()


def rounds_and_reason(events) -> tuple[int, str]:
    *before, finished = events
    assert isinstance(finished, Finished)
    return sum(isinstance(event, Round) for event in before), finished.reason


def test_without_a_cancel_it_is_written_to_the_end(engine):
    rounds, reason = rounds_and_reason(PendingAnswer(engine, HELLO, SETTINGS))
    assert rounds > 30 and reason == "max_tokens"


def test_before_it_is_begun_nothing_is_asked(engine, monkeypatch):
    monkeypatch.setattr(engine.session, "generate", None)
    pending = PendingAnswer(engine, HELLO, SETTINGS)
    pending.cancel()
    assert rounds_and_reason(pending) == (0, "cancelled")


def test_while_the_prompt_is_read_by_another_thread(engine, monkeypatch):
    """The engine has no request yet that could be cancelled."""
    pending, encode = PendingAnswer(engine, HELLO, SETTINGS), engine.session.encode_chat

    def slow(messages, **switches):
        thread = threading.Thread(target=pending.cancel)
        thread.start()
        thread.join()
        return encode(messages, **switches)

    monkeypatch.setattr(engine.session, "encode_chat", slow)
    assert rounds_and_reason(pending) == (0, "cancelled")
    monkeypatch.undo()
    assert rounds_and_reason(PendingAnswer(engine, HELLO, SETTINGS))[1] == "max_tokens"


def test_once_is_enough(engine):
    """Between the prompt and the first round too."""
    pending = PendingAnswer(engine, HELLO, SETTINGS)
    events = iter(pending)
    first = next(events)
    pending.cancel()
    assert not isinstance(first, Round)
    assert rounds_and_reason([first, *events]) == (0, "cancelled")


def test_a_model_without_levels_of_effort_says_so(engine):
    with pytest.raises(InputError, match="levels of effort"):
        list(PendingAnswer(engine, HELLO, changed(SETTINGS, "effort", "high")))
    asked = changed(changed(SETTINGS, "effort", "low"), "effort", "default")
    assert rounds_and_reason(PendingAnswer(engine, HELLO, asked))[1] == "max_tokens"
