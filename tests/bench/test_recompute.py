"""A report's figures come from its raw rounds: computed again by a script that knows no dspark."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dspark.bench.conditions import Condition, conditions
from dspark.bench.document import write_document
from dspark.bench.raw_rounds import rounds_path, write_rounds
from dspark.config import SamplingConfig
from tests.bench.scripted import ScriptedSession, document, measured

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "recompute_report.py"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "figures.json"
    asked = conditions(SamplingConfig(), (0.0, 1.0), (0, 40), (None, True))
    found = measured(ScriptedSession(jitter=0.3), conditions=asked)
    write_rounds(rounds_path(path), found.sections)
    write_document(path, document(found, rounds_path(path), len(asked)))
    return path


def recompute(path):
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(path)], capture_output=True, text=True, check=False
    )


def test_every_figure_is_that_of_the_raw_rounds_to_the_last_digit(report):
    outcome = recompute(report)
    assert outcome.returncode == 0, outcome.stdout
    assert outcome.stdout.startswith("all ") and int(outcome.stdout.split()[1]) >= 8 * 17


def test_the_script_imports_nothing_of_dspark():
    assert "import dspark" not in SCRIPT.read_text() and "from dspark" not in SCRIPT.read_text()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda each: each | {"accepted": each["accepted"] ^ 1}, "tau"),
        (lambda each: each | {"draft_seconds": 0.0031}, "round"),
    ],
    ids=["a draft", "a time"],
)
def test_a_report_of_other_rounds_is_found_out(report, tmp_path, change, told):
    lines = [json.loads(line) for line in rounds_path(report).read_text().splitlines()]
    run = next(each for each in lines if each["arm"] == "dspark")
    run["rounds"][0] = change(run["rounds"][0])
    copy = tmp_path / report.name
    copy.write_text(report.read_text())
    rounds_path(copy).write_text("\n".join(map(json.dumps, lines)) + "\n")
    outcome = recompute(copy)
    assert outcome.returncode == 1
    assert f"dspark, {told}" in outcome.stdout


def test_a_section_for_each_condition(report):
    sections = json.loads(report.read_text())["sections"]
    names = [each["condition"]["name"] for each in sections]
    assert names[:2] == ["T = 0", "T = 0, thinking on"]
    assert len(set(names)) == 8
    short, deep = sections[0], sections[2]
    assert deep["prompt_tokens"] >= short["prompt_tokens"] + 40
    assert "enable_thinking true" in sections[1]["prompt_format"]
    assert "ledger of 40 tokens" in deep["prompt_format"]
    assert [each["identical"] for s in sections[4:] for each in s["drafters"]] == [None] * 4


def test_interval_and_estimate_belong_together(report):
    for section in json.loads(report.read_text())["sections"]:
        (drafter,) = section["drafters"]
        low, high = drafter["interval"]
        assert low < high
        # 20 tokens in rounds of 13.8 ms against steps of 10.8 ms, whatever the noise
        tokens, rounds = (sum(column) for column in zip(*drafter["answers"]["tokens_rounds"]))  # noqa: B905
        assert low * 0.8 < tokens / rounds * 10.8 / 13.8 < high * 1.25


def test_condition_without_anything_asked_is_the_default():
    assert conditions(SamplingConfig(), (), (), ()) == (Condition(),)


def test_reliability_counts_every_verified_draft(report):
    lines = [json.loads(line) for line in rounds_path(report).read_text().splitlines()]
    (drafter,) = json.loads(report.read_text())["sections"][0]["drafters"]
    rounds = [
        each
        for run in lines
        if (run["section"], run["arm"]) == (0, "dspark")
        for each in run["rounds"]
    ]
    for position, found in enumerate(drafter["reliability"], start=1):
        told = [each for each in rounds if each["verified"] >= position]
        observed = sum(each["accepted"] >= position for each in told)
        assert sum(b["rounds"] for b in found["bins"]) == len(told)
        assert sum(b["rounds"] * b["accepted"] for b in found["bins"]) == pytest.approx(observed)
