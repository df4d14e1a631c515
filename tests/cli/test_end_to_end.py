"""The commands on a tiny pair with the real engine behind them."""

import json

import pytest


@pytest.fixture
def pair(tiny_chat_dir, make_tiny_head):
    return ["--target", str(tiny_chat_dir), "--draft", str(make_tiny_head(tiny_chat_dir))]


def test_drafts_change_the_rounds_but_not_the_answer(dspark, pair):
    settings = ["--max-tokens", "24", "--device", "cpu", "--dtype", "float32"]
    drafted = dspark("generate", "Grüß dich", "--json", *pair, *settings, "--schedule", "full")
    plain = dspark("generate", "Grüß dich", "--json", *pair, *settings, "--draft", "none")
    assert drafted.code == plain.code == 0
    with_head, without = json.loads(drafted.out), json.loads(plain.out)
    assert with_head["token_ids"] == without["token_ids"]
    assert with_head["text"] == without["text"]
    assert all(len(each["drafted"]) == 4 for each in with_head["rounds"])
    assert all(each["drafted"] == [] for each in without["rounds"])
    assert with_head["stats"]["drafted"] == 4 * len(with_head["rounds"])


def test_the_streamed_text_is_the_whole_text(dspark, pair):
    arguments = ["Hi", *pair, "--max-tokens", "24", "--stop", "zzzz"]
    answer = json.loads(dspark("generate", *arguments, "--json").out)
    assert dspark("generate", *arguments).out == answer["text"] + "\n"


def test_rounds_join_up(dspark, pair):
    answer = json.loads(dspark("generate", "Hi", "--json", *pair, "--max-tokens", "24").out)
    committed = answer["token_ids"][:1]
    for each in answer["rounds"]:
        assert each["anchor"] == committed[-1]
        committed += [*each["drafted"][: each["accepted"]], each["next"]]
    assert committed[: len(answer["token_ids"])] == answer["token_ids"]


@pytest.mark.parametrize("choice", [["--schedule", "full"], ["--confidence-threshold", "0.5"]])
def test_a_bench_finds_identical_output(dspark, pair, tmp_path, choice):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Hi"}\n{"category": "math", "prompt": "1 + 1"}\n')
    figures = tmp_path / "figures.json"
    outcome = dspark(
        *("bench", *pair, *choice, "--prompts", str(prompts), "--output", str(figures)),
        *("--max-tokens", "12", "--trials", "3"),
    )
    assert outcome.code == 0, outcome.err
    document = json.loads(figures.read_text("utf-8"))
    assert document["identical"] is True
    assert len(document["plain"]["trials"]) == 3
    assert len(document["acceptance_by_position"]) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate", "Hi", "-p", "demmo"], 2, "demo"),
        (["generate", "Hi", "--target", "/no/such/folder"], 2, "/no/such/folder"),
        (["generate", "--token-ids", "1,99999", "PAIR"], 2, "vocabulary"),
        (["generate", "x" * 600, "PAIR"], 2, "context"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(dspark, pair, arguments, code, words):
    arguments = [*arguments[:-1], *pair] if arguments[-1] == "PAIR" else arguments
    outcome = dspark(*arguments)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (code, "", 1)
    assert words in outcome.err


def test_a_head_of_another_model_is_refused(dspark, tiny_chat_dir, make_tiny_head, tiny_llama_dir):
    foreign = str(make_tiny_head(tiny_llama_dir))
    outcome = dspark("generate", "Hi", "--target", str(tiny_chat_dir), "--draft", foreign)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert "does not belong to this target" in outcome.err


def test_a_truncated_head_is_named(dspark, tiny_chat_dir, make_tiny_head, tmp_path):
    head = make_tiny_head(tiny_chat_dir)
    (tmp_path / "config.json").write_bytes((head / "config.json").read_bytes())
    weights = (head / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    outcome = dspark("generate", "Hi", "--target", str(tiny_chat_dir), "--draft", str(tmp_path))
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "model.safetensors" in outcome.err
