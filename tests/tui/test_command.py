"""`dspark chat`: which front end starts, and with what."""

import os
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest

from dspark.chat.sessions.store import FILE, ChatStore
from dspark.config import RuntimeConfig, SamplingChoice, ScheduleConfig, StopConfig
from dspark.events import FetchProgress
from dspark.hub import PairFiles
from dspark.progress import follow
from dspark_cli.main import run


@pytest.fixture
def started_with():
    """The rest of what the screen was given."""
    rest = {}
    yield rest
    if "store" in rest:
        rest["store"].close()


@pytest.fixture
def started(monkeypatch, started_with):
    """What the chosen front end was given: (front end, backend, settings)."""
    calls = []

    def run_chat(backend, settings, store, first_chat, models):
        calls.append(("screen", backend, settings))
        started_with.update(store=store, first_chat=first_chat, models=models)
        return 0

    monkeypatch.setattr("dspark_tui.app.run_chat", run_chat)
    monkeypatch.setattr(
        "dspark_cli.plain_chat.run_plain_chat", lambda *given: calls.append(("plain", *given[:2]))
    )
    return calls


@pytest.fixture
def terminal(monkeypatch):
    def connect(stdin: bool = True, stdout: bool = True, term: str = "xterm") -> None:
        monkeypatch.setattr(
            sys, "stdin", SimpleNamespace(isatty=lambda: stdin, buffer=None, encoding="utf-8")
        )
        monkeypatch.setattr(sys.stdout, "isatty", lambda: stdout, raising=False)
        monkeypatch.setenv("TERM", term)

    connect()
    return connect


def test_a_terminal_gets_the_screen_with_the_settings_own_defaults(started, terminal):
    assert run(["chat"]) == 0
    ((front_end, backend, settings),) = started
    assert front_end == "screen" and backend.name == "demo"
    assert (settings.sampling, settings.stop, settings.system) == (
        SamplingChoice(),
        StopConfig(max_tokens=None),
        "",
    )
    assert (backend.runtime, backend.engine.max_requests) == (RuntimeConfig(), 1)


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        (["demo"], "full"),
        (["demo", "--schedule", "auto"], "auto"),
        (["demo", "--confidence-threshold", "0.4"], "threshold"),
        (["demo", "--plain"], "auto"),
        (["qwen3-4b"], "auto"),
    ],
)
def test_the_demo_shows_drafts_in_every_round(started, terminal, options, mode):
    run(["chat", *options])
    assert started[0][1].engine.schedule.mode == mode


def test_another_model_of_the_chat_has_the_schedule_of_its_own(started, started_with, terminal):
    run(["chat", "demo"])
    models = started_with["models"]
    assert [models.open(name).engine.schedule.mode for name in ("qwen3-4b", "demo")] == [
        "auto",
        "full",
    ]


@pytest.mark.parametrize("missing", [{"stdin": False}, {"stdout": False}, {"term": "dumb"}])
def test_without_a_terminal_it_is_plain(started, terminal, missing):
    terminal(**missing)
    assert run(["chat"]) == 0
    assert started[0][0] == "plain"


def test_plain_can_be_asked_for(started, terminal):
    run(["chat", "--plain"])
    assert started[0][0] == "plain"


def test_options_reach_the_backend(started, terminal):
    options = "--temperature 0.7 --top-k 5 --top-p 0.9 --seed 3 --max-tokens 20 --system Hi"
    engine = "--device cpu --dtype bfloat16 --confidence-threshold 0.4"
    assert run(["chat", "demo", *options.split(), *engine.split()]) == 0
    ((_, backend, settings),) = started
    assert settings.sampling == SamplingChoice(temperature=0.7, top_k=5, top_p=0.9, seed=3)
    assert settings.stop.max_tokens == 20 and settings.system == "Hi"
    assert backend.runtime == RuntimeConfig("cpu", "bfloat16")
    assert backend.engine.schedule == ScheduleConfig("threshold", 0.4)


def test_contradicting_options_start_nothing(started, terminal, capsys):
    assert run(["chat", "--schedule", "full", "--confidence-threshold", "0.4"]) == 2
    assert started == [] and "exclude each other" in capsys.readouterr().err


def test_what_is_missing_is_fetched_where_the_chat_can_show_it(
    started, terminal, monkeypatch, tmp_path
):
    files = PairFiles("demo", tmp_path, None)
    step = FetchProgress("target", 1, 2)
    located = [None, files]
    monkeypatch.setattr("dspark.hub.locate", lambda name: located.pop(0))
    monkeypatch.setattr("dspark.hub.fetch", lambda name: iter([step]))
    run(["chat"])
    steps = []
    assert follow(started[0][1].find_files(), steps.append) == files and steps == [step]


def test_a_target_of_ones_own_fetches_no_pair(started, terminal, monkeypatch, tmp_path):
    monkeypatch.setattr("dspark.hub.fetch", lambda name: pytest.fail("fetched a pair"))
    monkeypatch.setattr("dspark.hub.resolve_target", lambda name: tmp_path / name)
    run(["chat", "--target", "mine", "--draft", "none"])
    backend = started[0][1]
    assert backend.name == "mine"
    assert follow(backend.find_files()) == PairFiles("mine", tmp_path / "mine", None)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "name", "prompt"),
    [
        (["demo", "Hello there"], "demo", "Hello there"),
        (["--pair", "demo", "Hello"], "demo", "Hello"),
        (["-p", "demo"], "demo", ""),
        (["--target", "mine", "Hello"], "mine", "Hello"),
    ],
)
def test_a_first_prompt_comes_after_the_pair(started, terminal, arguments, name, prompt):
    assert run(["chat", *arguments]) == 0
    ((_, backend, settings),) = started
    assert (backend.name, settings.prompts) == (name, (prompt,) if prompt else ())


def test_a_server_gets_a_first_prompt_too(started, terminal):
    assert run(["chat", "--server", "http://localhost:1", "Hello there"]) == 0
    assert started[0][2].prompts == ("Hello there",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--server", "U", "qwen3-4b"], "PAIR would have no effect"),
        (["--server", "U", "qwen3-4b", "Hello there"], "PAIR would have no effect"),
        (["--server", "U", "-p", "demo"], "--pair would have no effect"),
        (["--server", "U", "--device", "cuda"], "--device would have no effect"),
        (["--server", "U", "--dtype", "float32"], "--dtype would have no effect"),
        (["--server", "U", "--draft", "none"], "--draft would have no effect"),
        (["--server", "U", "--schedule", "full"], "--schedule would have no effect"),
        (["demo", "--target", "mine"], "replaces a pair"),
        (["demo", "Hi", "--target", "mine"], "replaces a pair"),
        (["demo", "Hi", "--pair", "demo"], "two pairs are named"),
        (["Hello there"], 'A prompt comes after the pair: dspark chat PAIR "..."'),
        (["demmo", "Hi"], "Did you mean demo?"),
        (["./nope"], "there is no folder ./nope"),
        (["~/nope/"], "there is no folder ~/nope/"),
        (["/no/such/model.gguf"], "there is no file /no/such/model.gguf"),
        ([""], "empty name"),
    ],
)
def test_what_would_be_ignored_or_is_nothing_is_refused(
    started, terminal, capsys, arguments, words
):
    assert run(["chat", *arguments]) == 2
    shown = capsys.readouterr().err
    assert words in shown and shown.count("\n") == 1
    assert started == []


@pytest.fixture
def chats(monkeypatch, tmp_path):
    """Two stored chats, the second one newer."""
    monkeypatch.setenv("DSPARK_HOME", str(tmp_path))
    with closing(ChatStore(tmp_path / FILE)) as store:
        return [store.add_chat(title) for title in ("Rivers of Europe", "Birds")]


def test_the_last_chat_is_continued(started, terminal, chats, started_with):
    assert run(["chat", "--continue"]) == 0
    assert started_with["first_chat"] == chats[1] and started_with["store"].is_kept
    assert started[0][1].name == "demo"


@pytest.mark.parametrize("name", ["Rivers of Europe", "rivers", "1"])
def test_a_chat_is_opened_by_its_title_or_number(started, terminal, chats, started_with, name):
    assert run(["chat", "--session", name]) == 0
    assert started_with["first_chat"] == chats[0]


def test_a_private_chat_is_not_stored(started, terminal, chats, started_with):
    assert run(["chat", "--private"]) == 0
    assert not started_with["store"].is_kept and started_with["first_chat"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--session", "fish"], "no chat is called fish"),
        (["--continue", "--plain"], "need the screen"),
        (["--continue", "--private"], "no chat to continue yet"),
    ],
)
def test_a_chat_that_cannot_be_opened_is_said_in_a_line(
    capsys, started, terminal, chats, arguments, words
):
    terminal()  # the streams that capsys has put there
    assert run(["chat", *arguments]) != 0
    shown = capsys.readouterr().err
    assert words in shown and shown.count("\n") == 1 and started == []
