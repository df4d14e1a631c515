"""`dspark bench`: pages, raw rounds, --compare and --from, on a scripted session."""

import json
import re
from xml.etree import ElementTree

import pytest

from dspark_cli.output.svg_plot import bar_plot


@pytest.fixture
def bench(dspark, fake_session, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        '{"category": "chat", "prompt": "Hi"}\n{"category": "math", "prompt": "1"}\n'
    )
    return lambda *options: dspark("bench", "--prompts", str(prompts), *options)


def test_one_run_writes_json_rounds_html_and_markdown(bench, tmp_path):
    files = {name: tmp_path / f"figures.{name}" for name in ("json", "html", "md")}
    outcome = bench(
        *("--output", str(files["json"]), "--html", str(files["html"])),
        *("--markdown", str(files["md"]), "--temperatures", "0,1", "--depths", "0,30"),
    )
    assert outcome.code == 0, outcome.err
    document = json.loads(files["json"].read_text("utf-8"))
    assert (document["version"], len(document["sections"])) == (2, 4)
    assert document["rounds"] == "figures.rounds.jsonl"
    lines = (tmp_path / document["rounds"]).read_text().splitlines()
    assert len(lines) == 4 * 2 * 2 * 3  # sections, arms, prompts, trials
    assert document["prompt_set"]["prompts"] == 2
    page, text = files["html"].read_text("utf-8"), files["md"].read_text("utf-8")
    assert page.count("<svg") == 4 * 4  # speed-ups, acceptance, times, reliability
    for word in ("τ", "T = 0", "arm", "floor", "AUC", "once reached"):
        assert f"<td>{word}</td><td>" in page
    assert "None" not in page
    for words in ("T = 1, 30 tokens of context", "2.00 ×", "identical", "Expect dspark"):
        assert words in page and words in text and words.replace(" ×", "×") in outcome.out


def test_the_page_needs_nothing_from_elsewhere(bench, tmp_path):
    assert bench("--html", str(tmp_path / "page.html")).code == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    assert not re.search(r"<(script|link|img|iframe)|@import|url\(|\bsrc=|\bhref=", page)
    for plot in re.findall(r"<svg.*?</svg>", page):
        assert all(
            not each.tail for each in ElementTree.fromstring(plot)
        )  # well-formed, no stray text
        assert "nan" not in plot
    assert set(re.findall(r"https?://[^\s\"<]+", page)) <= {"http://www.w3.org/2000/svg"}


def test_compare_ends_with_three_only_where_something_is_worse(bench, fake_session, tmp_path):
    old = tmp_path / "old.json"
    assert bench("--output", str(old)).code == 0
    same = bench("--compare", str(old))
    assert (same.code, same.err) == (0, "")
    assert "nothing is worse" in same.out
    document = json.loads(old.read_text())
    (drafter,) = document["sections"][0]["drafters"]
    drafter["answers"]["rates"] = [[2 * r for r in t] for t in drafter["answers"]["rates"]]
    old.write_text(json.dumps(document))
    worse = bench("--compare", str(old))
    assert (worse.code, worse.err) == (3, "")
    assert "worse by more than noise: dspark (speed-up)" in worse.out


def test_a_stored_report_is_shown_and_compared_without_a_model(
    dspark, bench, fake_session, tmp_path
):
    old, page = tmp_path / "old.json", tmp_path / "page.md"
    assert bench("--output", str(old)).code == 0
    opened = len(fake_session.opened)
    shown = dspark("bench", "--from", str(old), "--markdown", str(page))
    assert shown.code == 0 and "Milliseconds of a round" in shown.out
    assert "| dspark | 30.0 (30.0 to 30.0)" in page.read_text("utf-8")
    compared = dspark("bench", "--from", str(old), "--compare", str(old), "--json")
    verdicts = {each["verdict"] for each in json.loads(compared.out)["compared"]}
    assert (compared.code, verdicts) == (0, {"same"})
    assert len(fake_session.opened) == opened


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compare", "/no/such/old.json"], "/no/such/old.json"),
        (["--html", "/no/such/folder/x.html"], "--html"),
        (["--suite", "/no/such/suite"], "Suites are gsm8k, humaneval, mt-bench, spec-bench"),
        (["--depths", "1,x"], "no list of numbers"),
        (["--temperatures", "warm"], "--temperatures"),
        (["--thinking", "on"], "no switch for thinking"),
        (["--depths", "4000"], "exceed the model's 512"),
        (["--concurrency", "1", "--full"], "tables and JSON of its own"),
        (["--against", "vllm"], "transformers or llama.cpp"),
        (["--against", "llama.cpp"], "--gguf"),
        (["--against", "transformers", "--drafters", "a=lookup"], "one pair"),
    ],
)
def test_bad_input_is_one_line(dspark, fake_session, options, words):
    outcome = dspark("bench", *options)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert words in outcome.err


def test_files_and_suite_exclude_each_other(bench):
    outcome = bench("--suite", "gsm8k")
    assert outcome.code == 2 and "exclude each other" in outcome.err


def test_a_report_of_another_version_is_refused(dspark, tmp_path):
    old = tmp_path / "old.json"
    old.write_text('{"plain": {}}')
    outcome = dspark("bench", "--from", str(old))
    assert outcome.code == 2 and "Measure it again" in outcome.err


def test_ticks_are_round_with_one_at_plain_speed():
    ticks = re.compile(r'text-anchor="end">([^<]+)<')
    for speed, expected in ((1.49, "0 0.5 1 1.5"), (0.8, "0 0.5 1"), (7.0, "0 1 2 4 6")):
        assert ticks.findall(bar_plot(["chat"], {"dspark": [speed]}, "", 1.0)) == expected.split()
