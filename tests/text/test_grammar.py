"""Which tokens a JSON schema allows at each place, along drafts and back from refused ones."""

import json
from pathlib import Path

import pytest
import torch

from dspark.errors import InputError
from dspark.text.stream import TextCodec
from dspark.text.tool_calls_hermes import call_grammar
from tests.automaton import write_byte_tokenizer

SIZE = 300
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


@pytest.fixture
def codec(tmp_path: Path) -> TextCodec:
    pytest.importorskip("llguidance")
    write_byte_tokenizer(tmp_path, special=["<end>", "<think>", "</think>"], eos_token="<end>")
    made = TextCodec.from_directory(tmp_path)
    assert made is not None
    return made


def vocabulary(codec):
    return codec.grammars(SIZE, frozenset({codec.eos_token_id}))


def allowed_texts(matcher, written: list[int], drafts: list[int] = ()) -> set[str] | None:
    allowed = matcher.allowed_after(written, drafts)
    if allowed is None:
        return None
    assert allowed.shape == (SIZE,) and allowed.dtype == torch.bool
    return {chr(i) if i < 256 else "end" for i in allowed.nonzero().flatten().tolist()}


def test_only_what_the_schema_allows_may_follow(codec):
    matcher = vocabulary(codec).of_schema(SCHEMA).matcher()
    text = list(b'{"ok":')
    assert allowed_texts(matcher, []) == {"{"}
    assert allowed_texts(matcher, text) == {"t", "f", " ", "\n", "\t", "\r"}
    assert allowed_texts(matcher, text, list(b"tru")) == {"e"}
    assert allowed_texts(matcher, text, list(b"fals")) == {"e"}  # the first draft was refused
    assert allowed_texts(matcher, text, list(b"tx")) is None  # nothing can follow
    assert allowed_texts(matcher, text, list(b"true}")) == {"end"}
    assert allowed_texts(matcher, [*text, *b"false"]) == {"}", " ", "\n", "\t", "\r"}
    assert allowed_texts(matcher, [*text, *b"false}"]) == {"end"}


def test_any_walk_with_refused_drafts_allows_what_a_fresh_matcher_does(codec):
    grammar = vocabulary(codec).of_schema({"type": "object"})
    walked, text = grammar.matcher(), list(json.dumps({"a": [1, {"b": "c"}], "d": None}).encode())
    for at in range(0, len(text), 3):
        for drafts in (text[at : at + 5], [*text[at : at + 2], 0, 1], list(b'"x": [[')):
            fresh = grammar.matcher()
            ours, theirs = walked.allowed_after(text[:at], drafts), None
            for place in range(at + len(drafts) + 1):
                theirs = fresh.allowed_after([*text[:at], *drafts][:place])
            assert (ours is None) == (theirs is None)
            assert ours is None or ours.equal(theirs)


def test_white_space_has_an_end(codec):
    matcher = vocabulary(codec).of_schema({"type": "object"}).matcher()
    assert "\n" not in allowed_texts(matcher, [*b"{", *b"\n" * 40])
    called = vocabulary(codec).of_lark(call_grammar([{"function": {"name": "f"}}])).matcher()
    begun = [*b"<tool_call>\n{"]
    assert "\n" in allowed_texts(called, begun)
    assert "\n" not in allowed_texts(called, [*begun, *b"\n" * 40])


def test_it_begins_behind_thinking_that_the_prompt_opened(codec):
    grammar = vocabulary(codec).of_schema(SCHEMA)
    opened, closed = codec.encode_rest("<think>"), codec.encode_rest("</think>")
    assert codec.answer_gate(list(b"Hi")) is None
    matcher = grammar.matcher(codec.answer_gate([*b"Hi", *opened]))
    assert allowed_texts(matcher, list(b"any")) is None
    assert allowed_texts(matcher, list(b"any"), [*b" }", *closed]) == {"{"}
    assert allowed_texts(matcher, list(b"any"), list(b" }x")) is None
    assert allowed_texts(matcher, [*b"any ", *closed]) == {"{"}
    assert allowed_texts(matcher, [*b"any ", *closed, *b"{"], list(b'"o')) == {"k"}


@pytest.mark.parametrize(
    "schema",
    [{"type": "objekt"}, {"not": {"type": "string"}}, {"$ref": "http://localhost/x"}],
    ids=str,
)
def test_what_cannot_be_enforced_is_refused(codec, schema):
    with pytest.raises(InputError, match="schema cannot be enforced"):
        vocabulary(codec).of_schema(schema)


def test_without_the_library_there_is_one_line(codec, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(InputError, match="llguidance") as told:
        vocabulary(codec)
    assert "pip install" in told.value.hint
