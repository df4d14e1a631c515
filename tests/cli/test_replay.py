"""`--trace` and `dspark replay`: what was answered, again, without a model."""

import json
import sys

import pytest


@pytest.fixture
def trace(dspark, fake_session, tmp_path):
    path = tmp_path / "trace.jsonl"
    assert dspark("generate", "Hi", "--trace", str(path)).code == 0
    return path


def test_generate_appends_its_rounds_and_replay_writes_the_same_answer(dspark, trace, monkeypatch):
    before = trace.read_text()
    assert [json.loads(line)["type"] for line in before.splitlines()] == [
        *("question", "prompt", "round", "finished")
    ]
    answer = dspark("generate", "Ho", "--trace", str(trace)).out
    assert trace.read_text().startswith(before)
    monkeypatch.setattr("dspark.engine.session.open_session", None)  # no model is opened
    replayed = dspark("replay", str(trace), "--speed", "1000")
    assert replayed.code == 0 and replayed.out == answer * 2
    assert "τ 3.00" in replayed.err


def test_a_trace_that_cannot_be_written_is_told_in_a_line(dspark, fake_session, tmp_path):
    outcome = dspark("generate", "Hi", "--trace", str(tmp_path / "none" / "trace"))
    assert outcome.code == 2 and "could not be written" in outcome.err
    assert "Traceback" not in outcome.err


def test_the_recording_has_the_text_with_its_times(dspark, trace, tmp_path):
    cast = tmp_path / "answer.cast"
    assert dspark("replay", str(trace), "--cast", str(cast)).code == 0
    header, *writes = map(json.loads, cast.read_text().splitlines())
    assert header["version"] == 2 and {"width", "height"} <= header.keys()
    assert all(kind == "o" for _, kind, _ in writes)
    times = [at for at, _, _ in writes]
    assert times == sorted(times)
    text = "".join(text for _, _, text in writes)
    assert "> Hi" in text and "\x1b[32;4m wor" in text and "\x1b[31;9m?" in text
    assert "\n" not in text.replace("\r\n", "")


def test_the_picture_shows_the_answer(dspark, trace, tmp_path):
    picture = tmp_path / "answer.svg"
    assert dspark("replay", str(trace), "--svg", str(picture), "--size", "60x16").code == 0
    svg = picture.read_text()
    assert svg.startswith("<svg") and "Hello" in svg and "line-through" in svg


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--speed", "0"), "--speed 0"),
        (("--step",), "--step needs"),
        (("--svg", "x.svg", "--size", "wide"), "--size wide"),
        (("--svg", "none/x.svg"), "none/x.svg could not be written"),
    ],
)
def test_what_cannot_be_done_is_told(dspark, trace, options, said):
    outcome = dspark("replay", str(trace), *options)
    assert outcome.code == 2 and said in outcome.err


def test_a_replay_imports_no_torch(dspark, trace, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert dspark("replay", str(trace), "--speed", "1000").code == 0
