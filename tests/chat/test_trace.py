"""A trace gives every event again, whatever the program came to that wrote it."""

import json
from dataclasses import replace

import pytest

from dspark.chat.backend import BackendInfo
from dspark.chat.replay import ReplayBackend
from dspark.chat.trace import TraceFile, read_trace
from dspark.config import SamplingChoice, SamplingConfig, StopConfig
from dspark.errors import InputError
from dspark.events import DecodeStats, Finished, Piece, PrefillProgress, Round, TextDelta

INFO = BackendInfo("demo", 512, "cpu", "float32", True, sampling=SamplingConfig())
SAMPLING = SamplingConfig(temperature=0.7, seed=3)
STATS = DecodeStats(3, 4, 1, 3, 2, 1, 0.5, 0.25)
ROUND = Round(
    request_id=0,
    index=0,
    anchor=7,
    draft=(8, 9, 10),
    confidence=(0.5, 0.25, 0.125),
    verified=2,
    accepted=1,
    next=11,
    pieces=(Piece(8, "ä\n", True, 0.5), Piece(11, "\u2028x", False, None, True)),
    rejected=(Piece(9, "?", True, 0.25),),
    context_tokens=6,
    draft_seconds=0.001,
    verify_seconds=0.002,
    seconds=0.004,
)
EVENTS = (
    PrefillProgress(0, 3, 3, (Piece(7, "Hi", False),)),
    ROUND,
    replace(ROUND, index=1, confidence=None, rejected=()),
    TextDelta(0, (Piece(1, "!", False),), 0.5),
    Finished(0, "stop_token", (7, 8, 11), "Hiä\n", STATS, "tail", "\u2028x", True),
)


@pytest.fixture
def written(tmp_path):
    """written(events, ...): the path of a trace with an answer of each, asked "Q0", "Q1", ..."""

    def write(*answers):
        path = tmp_path / "trace.jsonl"
        for number, events in enumerate(answers):
            trace = TraceFile(path)
            assert tuple(trace.traced(f"Q{number}\u0085?", INFO, SAMPLING, events)) == tuple(events)
            trace.close()
        return path

    return write


def test_a_trace_states_every_event_to_the_last_field(written):
    answers = read_trace(written(EVENTS, EVENTS[:1]))
    assert [each.prompt for each in answers] == ["Q0\u0085?", "Q1\u0085?"]
    assert answers[0].info == replace(INFO, sampling=SAMPLING)
    assert tuple(event for _, event in answers[0].events) == EVENTS
    times = [at for at, _ in answers[0].events]
    assert times == sorted(times) and times[0] >= 0


def test_what_a_killed_program_wrote_is_read_up_to_its_last_whole_line(written):
    path = written(EVENTS)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        (answer,) = read_trace(path)
        lines = whole[start:end].count(b"\n")
        seen = tuple(event for _, event in answer.events)
        assert seen in (EVENTS[:lines], EVENTS[: lines + 1])  # the line break alone may be missing


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "line 6"),
        ("{}", "line 6"),
        ("no", "line 6"),
        ('{"version": 2, "type": "question"}', "line 6"),
        ('{"version": 1, "type": "finished", "at": 0}', "line 6"),
        ('{"version": 1, "type": "round", "at": "soon"}', "line 6"),
    ],
)
def test_another_file_is_refused_with_its_line(written, line, said):
    path = written(EVENTS)
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:5], line, *lines[5:]]))
    with pytest.raises(InputError, match=said):
        read_trace(path)


def test_a_missing_an_empty_and_a_binary_file_are_refused(tmp_path):
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none", empty, binary, tmp_path):
        with pytest.raises(InputError):
            read_trace(path)
    with pytest.raises(InputError, match="could not be written"):
        TraceFile(tmp_path)


def replayed(backend, prompt):
    messages = [{"role": "user", "content": prompt}]
    return tuple(backend.answer(messages, SamplingChoice(), StopConfig()))


def test_a_replay_gives_the_events_again_and_answers_nothing_else(written):
    backend = ReplayBackend(read_trace(written(EVENTS, EVENTS[:2])), speed=float("inf"))
    assert list(backend.load()) == [] and backend.info.name == "demo"
    with pytest.raises(InputError, match="no model"):
        replayed(backend, "Something else")
    assert replayed(backend, backend.prompts[0]) == EVENTS
    *events, last = replayed(backend, backend.prompts[1])
    assert tuple(events) == EVENTS[:2]
    assert (last.reason, last.text, last.stats.accepted) == ("cancelled", "Hiä\n", 1)
    with pytest.raises(InputError, match="no model"):
        replayed(backend, backend.prompts[0])


def test_a_replay_takes_its_time_and_can_be_left(written, monkeypatch):
    path = written(EVENTS)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for number, line in enumerate(lines[1:]):
        line["at"] = 30.0 * number
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    backend = ReplayBackend(read_trace(path), speed=1.0)
    events = backend.answer(
        [{"role": "user", "content": backend.prompts[0]}], SamplingChoice(), StopConfig()
    )
    assert next(events) == EVENTS[0]
    backend.cancel()  # else the next one would take half a minute
    assert next(events).reason == "cancelled" and list(events) == []


def test_a_stepped_replay_waits_for_each_round(written):
    backend = ReplayBackend(read_trace(written(EVENTS)), steps=True)
    events = backend.answer(
        [{"role": "user", "content": backend.prompts[0]}], SamplingChoice(), StopConfig()
    )
    assert next(events) == EVENTS[0]
    assert not backend._granted.acquire(blocking=False)
    backend.step()
    assert next(events) == ROUND
    backend.step()
    assert list(events) == list(EVENTS[2:])
