"""stdout has the answer alone; what the model sets apart from it is seen on a terminal only."""

import io
import json
import sys

import pytest

from dspark_cli.output.answer import ThinkingLine
from tests.automaton import chain, write_automaton, write_byte_tokenizer


@pytest.fixture
def model(tmp_path):
    """Writes <think>Hm.</think>Hello."""
    words = (b"\nHm.\n", b"\n\nHello")
    ids = write_byte_tokenizer(
        tmp_path,
        special=("<|end|>",),
        plain=("<think>", "</think>"),
        words=words,
        chat_template="{{ messages[-1].content }}",
    )
    text = [ids[name] for name in ("<think>", words[0], "</think>", words[1], "<|end|>")]
    write_automaton(tmp_path, chain(ord("q"), *text), 256 + len(ids), ids["<|end|>"])
    return ["--target", str(tmp_path), "--draft", "none"]


def test_the_answer_is_on_stdout_and_the_thinking_in_json(dspark, model):
    outcome = dspark("generate", "q", *model)
    assert (outcome.code, outcome.out) == (0, "Hello\n")
    assert "Hm." not in outcome.err
    answer = json.loads(dspark("generate", "q", "--json", *model).out)
    assert (answer["text"], answer["thinking"]) == ("Hello", "Hm.")


def test_raw_text_is_shown_as_it_is(dspark, model):
    outcome = dspark("generate", "q", "--raw", *model)
    assert outcome.out == "<think>\nHm.\n</think>\n\nHello\n"


def test_an_answer_that_did_not_begin_is_told(dspark, model):
    outcome = dspark("generate", "q", "--max-tokens", "2", *model)
    assert outcome.out == "\n" and "only thinking" in outcome.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_thinking_dim(dspark, model, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    outcome = dspark("generate", "q", *model)
    assert outcome.out == "Hello\n"
    assert "\x1b[2mHm.\x1b[0m\n" in terminal.getvalue()


def test_a_line_of_thinking_is_opened_and_closed_once():
    terminal = Terminal()
    line = ThinkingLine(terminal)
    for text in ("", "a", "b"):
        line.write(text)
    line.end()
    line.end()
    assert terminal.getvalue() == "\x1b[2mab\x1b[0m\n"
