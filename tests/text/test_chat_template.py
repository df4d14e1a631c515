"""Chat templates and tokenizers of any kind: right, or one line that says what happened."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from dspark.errors import CheckpointError, DSparkError, InputError
from dspark.text.stream import TextCodec
from tests.automaton import chain, write_automaton, write_byte_tokenizer
from tests.engine.pairs import open_pair

LOOP = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
STRICT = (  # as early Mistral and Gemma have it
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
)
DEAF = (  # takes no notice of what it does not know
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}"
    "[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
)
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


def codec_of(folder: Path, template: Any = None, **settings: Any) -> TextCodec:
    if template is not None:
        settings["chat_template"] = template
    write_byte_tokenizer(folder, **settings)
    codec = TextCodec.from_directory(folder)
    assert codec is not None
    return codec


def written(codec: TextCodec, *messages: dict[str, str]) -> str:
    return bytes(codec.encode_chat(messages)).decode()


@pytest.mark.parametrize("template", [STRICT, DEAF])
def test_instructions_begin_the_first_prompt_where_there_is_no_system_role(tmp_path, template):
    codec = codec_of(tmp_path, template)
    assert written(codec, SYSTEM, USER) == "[user]Be brief.\n\nHi"
    readback = written(codec, SYSTEM, USER, ASSISTANT, USER)
    assert readback == "[user]Be brief.\n\nHi[assistant]Hello[user]Hi"
    assert written(codec, USER, ASSISTANT, USER) == "[user]Hi[assistant]Hello[user]Hi"


def test_instructions_stay_where_the_template_takes_them(tmp_path):
    codec = codec_of(tmp_path, LOOP)
    assert written(codec, SYSTEM, USER) == "[system]Be brief.[user]Hi"
    trims = codec_of(tmp_path / "trims", LOOP.replace("m.content", "m.content | trim"))
    spaced = {**SYSTEM, "content": " Be brief.\n"}
    assert written(trims, spaced, USER) == "[system]Be brief.[user]Hi"


def test_what_a_template_says_is_said(tmp_path):
    codec = codec_of(tmp_path, STRICT)
    for chat in ([USER, USER], [ASSISTANT], [SYSTEM, ASSISTANT], [SYSTEM, USER, USER]):
        with pytest.raises(InputError, match="roles must alternate") as caught:
            codec.encode_chat(chat)
        assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('one\nand\ntwo') }}",
        "{{ messages[0].content.missing.deeper }}",
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ undefined_function() }}",
        "{% for m in messages %}",
        "{{ ''.__class__.__mro__ }}{{ messages.append(1) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range(99999999) | list }}",
        "{% include 'other' %}",
        "{{ messages | no_such_filter }}",
        "{{ strftime_now(7) }}",
    ],
)
def test_a_template_that_fails_is_one_line(tmp_path, template):
    codec = codec_of(tmp_path, template)
    with pytest.raises(InputError, match="chat template") as caught:
        codec.encode_chat([USER])
    assert "\n" not in caught.value.message and caught.value.hint
    assert codec.stop_token_ids == frozenset()


def test_of_several_templates_the_default_one_is_taken(tmp_path):
    both = [{"name": "rag", "template": "no"}, {"name": "default", "template": LOOP}]
    assert written(codec_of(tmp_path / "both", both), USER) == "[user]Hi"
    one = codec_of(tmp_path / "one", [{"name": "chat", "template": LOOP}])
    assert written(one, USER) == "[user]Hi"
    none = codec_of(tmp_path / "none")
    with pytest.raises(InputError, match="no chat template"):
        none.encode_chat([USER])


def test_today_is_told_to_templates_that_ask(tmp_path):
    codec = codec_of(tmp_path, "{{ strftime_now('%Y') }}" + LOOP)
    year, _, rest = written(codec, USER).partition("[")
    assert year.isdecimal() and rest == "user]Hi"


def begins_with_bos(folder: Path, ids: dict[str | bytes, int]) -> None:
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", ids["<s>"])]
    )
    core.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("template_adds", [True, False])
def test_there_is_one_bos_and_rows_without_a_token_read_as_nothing(tmp_path, template_adds):
    template = ("{{ bos_token }}" if template_adds else "") + "{{ messages[0].content }}"
    settings = {"special": ("<s>", "</s>"), "bos_token": "<s>", "eos_token": "</s>"}
    ids = write_byte_tokenizer(tmp_path, chat_template=template, **settings)
    begins_with_bos(tmp_path, ids)
    size = 256 + len(ids)
    padded = size + 22  # rows of the model beyond the tokenizer
    text = [ord("q"), ord("A"), padded - 3, ord("B"), padded - 1, ord("C"), ids["</s>"]]
    write_automaton(tmp_path, chain(*text), padded, ids["</s>"])
    session = open_pair(tmp_path, None)
    prompt = session.encode_chat([{"role": "user", "content": "q"}])
    assert prompt == ([ids["<s>"]] if template_adds else []) + [ord("q")]
    assert session.encode("q") == [ids["<s>"], ord("q")]
    *events, done = session.generate(prompt)
    assert done.text == "ABC" == "".join(p.text for e in events for p in e.pieces)


def broken(folder: Path, change: Any) -> str:
    """What loading says once `change` was made to tokenizer.json."""
    write_byte_tokenizer(folder)
    raw = json.loads((folder / "tokenizer.json").read_text())
    change(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="tokenizer") as caught:
        TextCodec.from_directory(folder)
    assert "\n" not in caught.value.message and caught.value.hint
    return caught.value.message


def test_a_tokenizer_of_a_newer_library_is_said_to_be_one(tmp_path):
    broken(tmp_path / "model", lambda raw: raw["model"].update(type="BPEofTomorrow"))
    broken(tmp_path / "version", lambda raw: raw.update(version="7.0"))
    broken(tmp_path / "decoder", lambda raw: raw["decoder"].update(type="Later"))
    broken(tmp_path / "list", lambda raw: raw.update(model=[]))


class Panic(BaseException):
    """As the Rust library raises it."""


def test_what_a_tokenizer_raises_is_one_line(tmp_path):
    codec = codec_of(tmp_path, LOOP)

    class Failing:
        chat_template = LOOP

        def encode(self, *args: object, **kwargs: object) -> None:
            raise self.error

    for error in (Panic("index out of\nrange"), Exception("data"), TypeError("x"), OverflowError()):
        codec._tokenizer = Failing()
        codec._tokenizer.error = error
        with pytest.raises(DSparkError, match="tokenizer cannot encode this text") as caught:
            codec.encode("x")
        assert "\n" not in caught.value.message
    codec._tokenizer.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        codec.encode("x")


def test_a_switch_for_thinking_is_left_alone_unless_asked_for(tmp_path):
    switch = "{% if enable_thinking is defined %}|{{ enable_thinking }}{% endif %}"
    codec = codec_of(tmp_path / "with", LOOP + switch)
    told = [bytes(codec.encode_chat([USER], thinking=t)).decode() for t in (None, True, False)]
    assert told == ["[user]Hi", "[user]Hi|True", "[user]Hi|False"]
    assert codec.has_thinking_switch
    assert not codec_of(tmp_path / "without", LOOP).has_thinking_switch
