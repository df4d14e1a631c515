"""Every place in which a model states what ends an answer, whatever form its value has."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma3Config, LlamaConfig

from dspark.errors import CheckpointError
from dspark.events import Finished
from dspark.targets.stop_tokens import stop_tokens
from dspark.text.stream import TextCodec
from tests.automaton import chain, write_automaton, write_byte_tokenizer
from tests.engine.pairs import open_pair


def stated(folder: Path, generation: Any, own: Any = None) -> set[int]:
    if generation != "no file":
        content = {} if generation == "no key" else {"eos_token_id": generation}
        (folder / "generation_config.json").write_text(json.dumps(content))
    config = LlamaConfig(vocab_size=100)
    config.eos_token_id = own
    return set(stop_tokens(folder, config))


@pytest.mark.parametrize(
    ("generation", "own", "expected"),
    [
        (5, 7, {5}),
        (0, 7, {0}),
        ([5, 6], 7, {5, 6}),
        ("5", 7, {5}),
        (["5", 6, None], 7, {5, 6}),
        (None, 7, {7}),
        ([], 7, {7}),
        ([None], [7, 8], {7, 8}),
        ("no key", 7, {7}),
        ("no file", 7, {7}),
        (-1, 7, {7}),
        ([-1, 5, 100, 4711], 7, {5}),
        (None, None, set()),
        (-1, 100, set()),
    ],
)
def test_one_place_speaks_where_another_is_silent(tmp_path, generation, own, expected):
    assert stated(tmp_path, generation, own) == expected


@pytest.mark.parametrize("value", ["</s>", True, 1.5, {"id": 3}, [5, "x"], [[5]]])
def test_what_is_no_id_is_refused_in_one_line(tmp_path, value):
    with pytest.raises(CheckpointError, match="is not a token id") as caught:
        stated(tmp_path, value)
    assert "\n" not in caught.value.message


def test_the_text_part_speaks_for_a_multimodal_model(tmp_path):
    config = Gemma3Config()
    config.eos_token_id = None
    config.text_config.eos_token_id = [1, 106]
    assert stop_tokens(tmp_path, config) == {1, 106}


def test_an_id_that_is_stated_twice_is_one(tmp_path):
    assert stated(tmp_path, [5, 5, "5"]) == {5}


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({"eos_token": "</s>"}, {"</s>"}),
        ({"eos_token": {"__type": "AddedToken", "content": "</s>"}}, {"</s>"}),
        ({"chat_template": TEMPLATE}, {"<|im_end|>"}),
        ({"chat_template": TEMPLATE, "eos_token": "</s>"}, {"</s>", "<|im_end|>"}),
        ({"chat_template": TEMPLATE.replace("<|im_end|>", " \n<|im_end|>")}, {"<|im_end|>"}),
        ({"chat_template": TEMPLATE.replace("<|im_end|>", "")}, set()),
        ({"chat_template": "{{ raise_exception('no') }}"}, set()),
        ({"chat_template": "{% for m in messages %}{{ m.role }}{% endfor %}"}, set()),
        ({}, set()),
    ],
)
def test_what_the_tokenizer_states(tmp_path, settings, ends):
    special = ("<|im_start|>", "<|im_end|>", "</s>")
    ids = write_byte_tokenizer(tmp_path, special=special, **settings)
    codec = TextCodec.from_directory(tmp_path)
    assert codec is not None
    assert codec.stop_token_ids == {ids[end] for end in ends}


def test_channels_have_several_ends_of_which_the_template_names_one(tmp_path):
    marks = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
    template = (
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    )
    write_byte_tokenizer(tmp_path, special=marks, chat_template=template)
    codec = TextCodec.from_directory(tmp_path)
    assert codec is not None and codec.stop_token_ids == frozenset()


def test_an_answer_ends_where_the_turn_does(tmp_path):
    """A chat model whose config names the end of a text alone, as many were published."""
    ids = write_byte_tokenizer(
        tmp_path,
        special=("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        chat_template=TEMPLATE,
        eos_token="<|endoftext|>",
    )
    text = [ord("q"), ord("A"), ids["<|im_end|>"], ord("B"), ids["<|endoftext|>"]]
    write_automaton(tmp_path, chain(*text), 256 + len(ids), ids["<|endoftext|>"])
    *_, done = open_pair(tmp_path, None).generate(text[:1])
    assert isinstance(done, Finished)
    assert (done.text, done.reason, done.token_ids) == ("A", "stop_token", tuple(text[1:3]))
