"""`dspark bench`: a table on stdout, all figures in the file."""

import json
import os

import pytest

from dspark.bench.report import Difference
from dspark_cli.views.bench import describe_difference


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"category": "chat", "prompt": "Hi"}\n{"category": "math", "prompt": "1+1"}\n')
    return path


def test_the_file_has_the_promised_keys(dspark, fake_session, prompts, tmp_path):
    figures = tmp_path / "figures.json"
    outcome = dspark("bench", "--prompts", str(prompts), "--output", str(figures))
    assert outcome.code == 0, outcome.err
    document = json.loads(figures.read_text("utf-8"))
    assert {"plain", "dspark", "speedup", "tau", "acceptance_by_position", "identical"} <= set(
        document
    )
    assert {"machine", "versions", "date", "command", "settings", "end_to_end"} <= set(document)
    assert document["plain"]["median"] == pytest.approx(15.0)
    assert document["dspark"]["trials"] == pytest.approx([30.0] * 3)
    assert document["speedup"] == pytest.approx(2.0)
    assert document["tau"] == 3.0
    assert document["identical"] is True
    assert document["settings"]["sampling"]["temperature"] == 0.0
    assert document["versions"]["torch"]
    assert document["acceptance_by_position"][2] == {
        "position": 3,
        "verified": 6,
        "reached": 6,
        "accepted": 0,
        "rate": 0.0,
        "conditional_rate": 0.0,
    }


def test_the_table_shows_rates_ratio_and_verdict(dspark, fake_session, prompts):
    outcome = dspark("bench", "--prompts", str(prompts), "--trials", "1")
    assert outcome.out.startswith("demo on cpu in float32")
    assert "2.00×" in outcome.out
    assert "identical to plain decoding on all 2 prompts" in outcome.out
    assert outcome.err == ""
    assert fake_session.is_closed


def test_our_own_prompts_are_the_default(dspark, fake_session):
    assert dspark("bench", "--trials", "1", "--max-tokens", "5").code == 0
    assert len({tuple(ids) for ids, *_ in fake_session.asked}) == 16


def test_a_difference_is_told_with_place_and_gap():
    words = describe_difference(
        Difference(prompt=2, position=0, plain_token=7, dspark_token=9, logit_gap=0.125)
    )
    assert words == "first in prompt 3 at new token 1: 9 instead of 7, logit gap 0.125"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "/no/such/folder/x.json"], "no folder"),
        (["--json", "x.json"], "Use --output FILE."),
        (["--json=x"], "Use --output FILE."),
        (["demo", "--json", "out/x.JSON"], "Use --output FILE."),
        (["demo", "--json", "out"], "out"),
        (["--prompts", "/no/such/file"], "no file"),
        (["--trials", "0"], "--trials"),
        (["--schedule", "full", "--confidence-threshold", "0.1"], "exclude each other"),
        (["--drafters", "my-head"], "not NAME=HEAD"),
        (["--drafters", "a=x", "--drafters", "a=y"], "a is taken"),
        (["--drafters", "plain=x"], "plain is taken"),
        (["--drafters", "a=x", "--draft", "y"], "exclude each other"),
        (["--drafters", "a=x", "--tau-only", "--schedule", "auto"], "whole blocks"),
        (["--tau-only"], "--drafters"),
        (["--drafters", "a=/no/such/head"], "/no/such/head"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(dspark, fake_session, arguments, words):
    outcome = dspark("bench", *arguments)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert words in outcome.err
    assert fake_session.opened == []


def test_a_set_without_categories_has_its_files_name(dspark, fake_session, tmp_path):
    figures = tmp_path / "figures.json"
    for name in ("humaneval", "mt_bench"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "Hi"}\n{"prompt": "Ho"}\n')
    files = [f"--prompts={tmp_path / name}.jsonl" for name in ("humaneval", "mt_bench")]
    assert dspark("bench", *files, "--limit", "1", "--output", str(figures)).code == 0
    categories = json.loads(figures.read_text("utf-8"))["categories"]
    assert [(each["category"], each["prompts"]) for each in categories] == [
        ("humaneval", 1),
        ("mt_bench", 1),
    ]


@pytest.mark.parametrize("options", [["--tau-only"], ["--schedule", "full", "--trials", "1"]])
def test_heads_are_compared_on_one_target(
    dspark, tiny_chat_dir, make_tiny_head, prompts, tmp_path, options
):
    heads = f"one={make_tiny_head(tiny_chat_dir)},two={make_tiny_head(tiny_chat_dir)}"
    figures = tmp_path / "figures.json"
    outcome = dspark(
        *("bench", "--target", str(tiny_chat_dir), "--drafters", heads, *options),
        *("--prompts", str(prompts), "--max-tokens", "6", "--output", str(figures)),
    )
    assert outcome.code == 0, outcome.err
    document = json.loads(figures.read_text("utf-8"))
    one, two = document["drafters"]
    assert (one["name"], two["name"]) == ("one", "two")
    assert one["tau"] == two["tau"] >= 1.0
    assert one["identical"] and two["identical"]
    assert ("speedup" in one) == ("plain" in document) == (options != ["--tau-only"])
    assert outcome.out.count("identical to plain decoding on all 2 prompts") == 2


def test_an_interrupted_bench_leaves_no_file(dspark, fake_session, prompts, tmp_path):
    fake_session.failure = KeyboardInterrupt()
    folder = tmp_path / "results"
    folder.mkdir()
    assert (
        dspark("bench", "--prompts", str(prompts), "--output", str(folder / "x.json")).code == 130
    )
    assert os.listdir(folder) == []


def test_a_pair_without_a_head_is_refused(dspark, fake_session, prompts):
    fake_session.has_drafter = False
    outcome = dspark("bench", "--prompts", str(prompts))
    assert outcome.code == 2
    assert "--draft" in outcome.err


def test_json_prints_what_output_writes(dspark, fake_session, prompts, tmp_path):
    figures = tmp_path / "figures.json"
    outcome = dspark("bench", "--prompts", str(prompts), "--json", "--output", str(figures))
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out) == json.loads(figures.read_text("utf-8"))
    assert json.loads(outcome.out)["partial"] is False


def test_an_interrupted_bench_reports_what_is_complete(
    dspark, fake_session, prompts, tmp_path, monkeypatch
):
    answer, begun = fake_session.generate, []

    def generate(*given, **more):
        begun.append(given)
        if len(begun) > 2 + 4 + 1:  # warm-up, a trial, and one answer of the next
            raise KeyboardInterrupt
        return answer(*given, **more)

    monkeypatch.setattr(fake_session, "generate", generate)
    figures = tmp_path / "figures.json"
    outcome = dspark("bench", "--prompts", str(prompts), "--output", str(figures))
    assert (outcome.code, outcome.err) == (130, "dspark: interrupted.\n")
    assert "interrupted: these are the figures of 1 trial over 2 prompts" in outcome.out
    assert "2.00×" in outcome.out
    document = json.loads(figures.read_text("utf-8"))
    assert (document["partial"], document["settings"]["trials"]) == (True, 1)


def test_many_requests_at_a_time(dspark, tiny_chat_dir, prompts, tmp_path):
    figures = tmp_path / "load.json"
    sizes = ("--concurrency", "1,2", "--trials", "1", "--max-tokens", "4")
    files = ("--draft", "lookup", "--prompts", str(prompts), "--output", str(figures))
    outcome = dspark("bench", str(tiny_chat_dir), *sizes, *files)
    assert outcome.code == 0, outcome.err
    measured = json.loads(figures.read_text("utf-8"))["concurrency"]
    assert [each["requests"] for each in measured] == [1, 2]
    assert all(arm["is_identical"] for each in measured for arm in each["arms"])
