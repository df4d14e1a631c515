"""Prompt sets: ours is complete, a broken one names its line."""

import gzip

import pytest

from dspark.bench.prompts import own_prompts, read_prompts
from dspark.errors import InputError


def test_our_own_set_covers_chat_code_and_math():
    prompts = own_prompts()
    assert 12 <= len(prompts) <= 18
    assert {prompt.category for prompt in prompts} == {"chat", "code", "math"}
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    assert sum("\n" in prompt.text for prompt in prompts) >= 2
    assert any(not prompt.text.isascii() or "Nenne" in prompt.text for prompt in prompts)


def test_without_one_a_file_gives_its_name(tmp_path):
    path = tmp_path / "gsm8k_test.jsonl"
    path.write_text('{"prompt": "Hi"}\n{"prompt": "Ho", "category": "chat"}\n\n')
    assert [each.category for each in read_prompts(path)] == ["gsm8k_test", "chat"]


@pytest.mark.parametrize(
    "raw",
    [
        b'\xef\xbb\xbf{"prompt": "Hi"}\r\n{"prompt": "Ho"}',
        gzip.compress(b'{"prompt": "Hi"}\n{"prompt": "Ho", "category": null}\n', mtime=0),
        b'[{"instruction": "Hi", "output": "x"}, {"turns": ["Ho", "more"]}]',
        b'{"text": "Hi"}\n{"messages": [{"role": "user", "content": [{"text": "Ho"}]}]}\n',
    ],
)
def test_sets_as_other_programs_write_them(tmp_path, raw):
    path = tmp_path / "set.jsonl"
    path.write_bytes(raw)
    assert [(each.category, each.text) for each in read_prompts(path)] == [
        ("set", "Hi"),
        ("set", "Ho"),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no prompt"),
        ('{"prompt": "Hi"}\nnot json', ":2 is not a JSON object"),
        ('{"question": "Hi"}', ":1 has no prompt"),
        ('{"prompt": " "}', ":1 has no prompt"),
        ("[7]", "record 1 is not a JSON object"),
    ],
)
def test_a_broken_set_names_the_line(tmp_path, content, words):
    path = tmp_path / "set.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        read_prompts(path)


def test_a_file_that_is_missing_or_not_utf8_is_named(tmp_path):
    with pytest.raises(InputError, match="no file"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xfc"}')
    with pytest.raises(InputError, match="not UTF-8"):
        read_prompts(tmp_path / "latin.jsonl")
