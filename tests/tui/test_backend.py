"""The engine behind the chat, on a tiny model; and what starting a front end must not import."""

import subprocess
import sys
from dataclasses import replace

import pytest

from dspark.chat.backend import ChatSettings, ContextFullError, EngineBackend
from dspark.chat.token_spans import marks_of
from dspark.config import EngineConfig, RuntimeConfig, SamplingChoice, ScheduleConfig, StopConfig
from dspark.errors import InputError
from dspark.events import FetchProgress, Finished, LoadProgress, Piece, PrefillProgress, Round
from dspark.hub import PairFiles
from dspark_tui.app import DSparkApp
from tests.work import done

HELLO = [{"role": "user", "content": "Hello"}]
SAMPLING = SamplingChoice()
STOP = StopConfig(max_tokens=24, ignore_stop_tokens=True)


@pytest.fixture
def engine_backend(tiny_chat_dir, make_tiny_head):
    files = PairFiles("tiny", tiny_chat_dir, make_tiny_head(tiny_chat_dir))
    backend = backend_of(files)
    yield backend
    backend.close()


def backend_of(files, *steps) -> EngineBackend:
    return EngineBackend(
        name="tiny",
        find_files=lambda: done(files, *steps),
        runtime=RuntimeConfig(device="cpu", dtype="float32"),
        engine=EngineConfig(schedule=ScheduleConfig(mode="full")),
    )


def test_loading_reports_steps_and_then_answers(engine_backend):
    steps = list(engine_backend.load())
    assert steps and all(isinstance(step, LoadProgress) for step in steps)
    info = engine_backend.info
    assert (info.name, info.device, info.dtype, info.has_drafter) == (
        "tiny",
        "cpu",
        "float32",
        True,
    )
    *events, finished = engine_backend.answer(HELLO, SAMPLING, STOP)
    assert isinstance(finished, Finished)
    shown = "".join(piece.text for event in events for piece in event.pieces)
    assert without_torn_end(shown) == without_torn_end(finished.text)
    assert finished.stats.new_tokens == 24


def test_fetching_is_reported_before_loading(tiny_chat_dir):
    fetching = FetchProgress("wheel", 1, 2)
    steps = list(backend_of(PairFiles("tiny", tiny_chat_dir, None), fetching).load())
    assert steps[0] is fetching and isinstance(steps[1], LoadProgress)


def test_cancel_ends_the_answer_at_the_next_round(engine_backend):
    list(engine_backend.load())
    events = engine_backend.answer(HELLO, SAMPLING, replace(STOP, max_tokens=200))
    seen = []
    for event in events:
        seen.append(event)
        if isinstance(event, Round):
            engine_backend.cancel()
    assert seen[-1].reason == "cancelled" and seen[-1].text
    assert sum(isinstance(event, Round) for event in seen) == 1
    *_, again = engine_backend.answer(HELLO, SAMPLING, STOP)
    assert again.reason == "max_tokens"


def test_a_conversation_beyond_the_context_is_refused(engine_backend):
    list(engine_backend.load())
    long = [{"role": "user", "content": "word " * 200}]
    with pytest.raises(ContextFullError, match="the context holds 512"):
        engine_backend.answer(long, SAMPLING, STOP)


def test_a_model_without_a_tokenizer_cannot_chat(tiny_llama_dir):
    with pytest.raises(InputError, match="no tokenizer"):
        list(backend_of(PairFiles("tiny", tiny_llama_dir, None)).load())


async def test_the_app_shows_what_the_engine_writes(engine_backend):
    app = DSparkApp(engine_backend, ChatSettings(stop=STOP))
    async with app.run_test(size=(100, 40)) as pilot:
        while not app.screen.query("PromptBox"):
            await pilot.pause(0.01)
        chat = app.screen
        chat.query_one("PromptBox").put("Hello")
        await pilot.press("enter")
        while not chat.conversation.turns:
            await pilot.pause(0.01)
        spans = chat.query_one("Spans")
        assert chat.status.model == "tiny" and chat.status.stats.new_tokens == 24
    *_, alone = engine_backend.answer(HELLO, SAMPLING, STOP)
    assert chat.conversation.last_answer == alone.text
    (expected,) = marks_of(PrefillProgress(0, 1, 1, (Piece(1, alone.text, False),)))
    assert without_torn_end(spans.text) == without_torn_end(expected.text)


def without_torn_end(text: str) -> str:
    """A character whose last bytes never came is in the text, but no token completes it."""
    return text.removesuffix("\ufffd")


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("dspark_tui.app", ("torch", "transformers")),
        ("dspark.chat.backend", ("torch", "transformers", "textual")),
        ("dspark_cli.plain_chat", ("torch", "transformers", "textual")),
        ("dspark_cli.commands.chat", ("torch", "transformers", "textual")),
    ],
)
def test_starting_a_front_end_is_light(module, forbidden):
    code = f"import sys, {module}; print([name for name in {forbidden!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
