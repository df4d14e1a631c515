"""A tokenizer without transformers says exactly what transformers' would."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from dspark.text.plain_tokenizer import PlainTokenizer, plain_tokenizer
from dspark.text.stream import load_tokenizer
from tests.automaton import write_byte_tokenizer

SPECIAL = ("<s>", "</s>", "<pad>", "<|user|>")
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
TEXTS = ("", " ", "Hi", "<s>", "a <s> b</s>  <|user|>x<plain>", "naïve 東京 🦊\n\n", "</s")
LLAMA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}\n"
    "{% set content = '<|user|>' + message['role'] + '\n\n' + message['content'] | trim %}\n"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}\n"
    "{{- content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|user|>assistant' }}{% endif %}"
)
TEMPLATES = (
    LLAMA,
    "{{ messages | tojson }}{{ {'ü<': [1, 2]} | tojson(indent=2) }}{{ tools is none }}",
    "{%- for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}{{ dict(a=1)['a'] }}{{ pad_token }}{{ strftime_now('%Y') }}",
)
FAILING = (
    "{{ raise_exception('no') }}",
    "{{ ''.__class__.__mro__[1] }}{{ messages.append(1) }}",
    "{% for m in messages %}",
    "{{ strftime_now.__globals__['sys'] }}{{ 1 / 0 }}",
)
CHAT = [
    {"role": "system", "content": "Be <b>brief</b>."},
    {"role": "user", "content": " Hi\n"},
    {"role": "assistant", "content": "Hello"},
]


def model(folder: Path, **settings: Any) -> Path:
    write_byte_tokenizer(folder, SPECIAL, ("<plain>",), (b"Hi",), **settings)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def both(folder: Path) -> tuple[PlainTokenizer, PreTrainedTokenizerFast]:
    ours = plain_tokenizer(folder)
    assert ours is not None
    return ours, PreTrainedTokenizerFast.from_pretrained(folder)


def assert_same(folder: Path) -> None:
    ours, theirs = both(folder)
    for text in TEXTS:
        for adds in (False, True):
            ids = theirs.encode(text, add_special_tokens=adds)
            assert ours.encode(text, add_special_tokens=adds) == ids
            for skips in (False, True):
                options: Any = {"skip_special_tokens": skips, "clean_up_tokenization_spaces": False}
                assert ours.decode(ids, **options) == theirs.decode(ids, **options)
    assert ours.get_vocab() == theirs.get_vocab() and len(ours) == len(theirs)
    for index in (0, 65, 256, len(ours) - 1, len(ours)):
        assert ours.convert_ids_to_tokens(index) == theirs.convert_ids_to_tokens(index)
    for token in ("A", "<s>", "<plain>", "absent"):
        assert ours.convert_tokens_to_ids(token) == theirs.convert_tokens_to_ids(token)
    assert ours.all_special_ids == theirs.all_special_ids
    roles = [f"{role}_token_id" for role in ("bos", "eos", "pad", "unk")]
    assert [getattr(ours, role) for role in roles] == [getattr(theirs, role) for role in roles]
    added = ours.added_tokens_decoder
    assert {i: repr(token) for i, token in added.items()} == {
        i: repr(token) for i, token in theirs.added_tokens_decoder.items()
    }


MORE = {"extra_special_tokens": ["<|user|>", "</s>"]}


@pytest.mark.parametrize(
    "settings", [{}, ROLES, {**ROLES, **MORE}, {**ROLES, "unk_token": "<pad>"}, MORE], ids=str
)
def test_ids_and_texts(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert_same(model(tmp_path, **settings))


def test_a_bos_that_the_file_adds(tmp_path: Path) -> None:
    folder = model(tmp_path, **ROLES)
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    core.save(str(folder / "tokenizer.json"))
    assert_same(folder)
    assert both(folder)[0].encode("Hi", add_special_tokens=True)[0] == core.token_to_id("<s>")


def test_special_tokens_that_take_the_space_around_them(tmp_path: Path) -> None:
    folder = model(tmp_path)
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.add_special_tokens([AddedToken("<wide>", lstrip=True, rstrip=True)])
    core.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<wide>"}))
    assert_same(folder)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("is_asked", [True, False])
def test_templates(tmp_path: Path, template: str, is_asked: bool) -> None:
    ours, theirs = both(model(tmp_path, **ROLES))
    options: Any = {
        "chat_template": template,
        "tokenize": False,
        "add_generation_prompt": is_asked,
    }
    assert ours.apply_chat_template(CHAT, **options) == theirs.apply_chat_template(CHAT, **options)


@pytest.mark.parametrize("template", FAILING)
def test_templates_that_fail(tmp_path: Path, template: str) -> None:
    options: Any = {"chat_template": template, "tokenize": False, "add_generation_prompt": True}
    for tokenizer in both(model(tmp_path)):
        with pytest.raises(Exception):  # noqa: B017  # a template may raise anything
            tokenizer.apply_chat_template(CHAT, **options)


def test_a_template_in_a_file_of_its_own_comes_first(tmp_path: Path) -> None:
    folder = model(tmp_path, chat_template="in the settings")
    assert both(folder)[0].chat_template == both(folder)[1].chat_template == "in the settings"
    (folder / "chat_template.jinja").write_text("in a file")
    assert both(folder)[0].chat_template == both(folder)[1].chat_template == "in a file"


def pads(folder: Path) -> None:
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.enable_padding(length=4)
    core.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    "settings",
    [
        {"add_bos_token": True, "bos_token": "<s>"},
        {"eos_token": "<plain>"},
        {"eos_token": "<absent>"},
        {"eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": True}},
        {"chat_template": [{"name": "default", "template": "x"}]},
        {"split_special_tokens": True},
        {"extra_special_tokens": ["<absent>"]},
        {"extra_special_tokens": {"image_token": "<s>"}},
    ],
    ids=str,
)
def test_transformers_reads_what_asks_for_more(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = model(tmp_path, **settings)
    assert plain_tokenizer(folder) is None
    assert not isinstance(load_tokenizer(folder), PlainTokenizer)


def test_transformers_reads_tokenizers_that_pad_or_come_with_other_files(tmp_path: Path) -> None:
    folder = model(tmp_path)
    assert isinstance(load_tokenizer(folder), PlainTokenizer)
    (folder / "special_tokens_map.json").write_text("{}")
    assert plain_tokenizer(folder) is None
    (folder / "special_tokens_map.json").unlink()
    pads(folder)
    assert plain_tokenizer(folder) is None
