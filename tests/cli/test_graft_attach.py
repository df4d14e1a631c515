"""`dspark graft`: which of its two meanings, and what is said about it."""

import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from dspark.graft.attach import HeadMatch, Registered
from dspark.hub.catalog.find import PAIRS
from dspark.hub.catalog.pairs import PairFiles
from dspark.hub.memory_fit import Room
from dspark.probe.self_test import ProbeReport, Trial
from tests.work import done

REPORT = ProbeReport(
    prompts=16,
    places=96,
    acceptance_by_position=(0.8, 0.6),
    agreement_by_position=(0.9, 0.7),
    trials=(Trial("the mask token is 4, not 5", 0.7, 0.7, 0.001, 0.002),),
)
MISREAD = ProbeReport(
    prompts=16,
    places=96,
    acceptance_by_position=(0.4, 0.3),
    agreement_by_position=(0.4, 0.3),
    trials=(Trial("the mask token is 4, not 5", 0.8, 0.35, 0.45, 0.02),),
)


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Jobs that came to be attached; bases lie in a folder, and Qwen3-4B's head fits them."""
    jobs: list[Any] = []

    def attach(job: Any) -> Generator[Any, None, Registered]:
        jobs.append(job)
        return done(Registered(job.name or "base", is_new=True), REPORT)

    for name in ("base", "head"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("dspark.graft.attach.attach", attach)
    monkeypatch.setattr(
        "dspark_cli.views.attach.find_files",
        lambda choice: PairFiles("base", tmp_path / "base", choice.draft and Path(choice.draft)),
    )
    monkeypatch.setattr(
        "dspark.graft.attach.match_head", lambda base: HeadMatch(PAIRS["qwen3-4b"], True)
    )
    monkeypatch.setattr("dspark.graft.attach.fetch_head", lambda pair: done(tmp_path / "fetched"))
    return jobs


def test_the_head_that_fits_is_attached(
    dspark: Callable[..., Any], attached: list[Any], tmp_path: Path
) -> None:
    outcome = dspark("graft", "--base", str(tmp_path / "base"), "--name", "mine")
    assert outcome.code == 0
    (job,) = attached
    assert (job.head, job.draft, job.name) == ("qwen3-4b", tmp_path / "fetched", "mine")
    assert "the head of qwen3-4b fits by its sizes; their tokenizers agree" in outcome.err
    assert "acceptance of the first drafts: 80% 60%" in outcome.err
    assert "dspark chat mine" in outcome.err


def test_a_head_of_ones_own(
    dspark: Callable[..., Any], attached: list[Any], tmp_path: Path
) -> None:
    head = str(tmp_path / "head")
    outcome = dspark("graft", "--base", str(tmp_path / "base"), "--attach", head, "--json")
    assert outcome.code == 0
    assert attached[0].head == head
    assert '"name": "base"' in outcome.out and '"fault": null' in outcome.out


@pytest.mark.parametrize("options", [["--train"], ["--steps", "5"], ["--out", "x"], ["--dry-run"]])
def test_an_option_of_training_means_training(
    options: list[str],
    dspark: Callable[..., Any],
    attached: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = dspark("graft", "--base", str(tmp_path / "base"), *options)
    assert outcome.code == 2
    assert "there are no answers" in outcome.err
    assert attached == []


def test_where_no_head_fits_it_is_said_and_trained(
    dspark: Callable[..., Any],
    attached: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    match = HeadMatch(None, False, PAIRS["qwen3-4b"], ("its layers is 36, the base's 28",))
    monkeypatch.setattr("dspark.graft.attach.match_head", lambda base: match)
    outcome = dspark("graft", "--base", str(tmp_path / "base"))
    assert outcome.code == 2
    assert "the nearest is that of qwen3-4b: its layers is 36, the base's 28" in outcome.err
    assert "there are no answers" in outcome.err


def test_attach_and_training_exclude_each_other(
    dspark: Callable[..., Any], attached: list[Any]
) -> None:
    outcome = dspark("graft", "--attach", "x", "--steps", "5")
    assert outcome.code == 2
    assert "steps" in outcome.err
    assert attached == []


@pytest.mark.parametrize(("report", "code"), [(REPORT, 0), (MISREAD, 1)])
def test_probe_command(
    report: ProbeReport,
    code: int,
    dspark: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("dspark.probe.self_test.probe", lambda files, runtime: done(report))
    monkeypatch.setattr(
        "dspark_cli.commands.probe.find_files",
        lambda choice: PairFiles("base", tmp_path, tmp_path),
    )
    outcome = dspark("probe", "base")
    assert outcome.code == code
    said = (
        "OK: none of 1 alternative readings is better"
        if code == 0
        else "misread: the mask token is 4"
    )
    assert said in outcome.out


def test_probe_quotes_what_the_authors_state(
    dspark: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dspark.probe.self_test.probe", lambda files, runtime: done(REPORT))
    monkeypatch.setattr(
        "dspark_cli.commands.probe.find_files",
        lambda choice: PairFiles("qwen3-4b", tmp_path, tmp_path),
    )
    told = " ".join(dspark("probe", "qwen3-4b").out.split())
    assert f"measured here: tau of the first 2 drafts: {REPORT.tau:.2f} (temperature 1" in told
    assert "published tau, blocks of 7: GSM8K 6.11, MATH-500 5.70" in told
    assert "no system prompt" in told and "arXiv 2607.05147" in told
    asked = json.loads(dspark("probe", "qwen3-4b", "--json").out)
    assert asked["published"]["tau"]["MT-Bench"] == 3.64
    other = dspark("probe", "qwen3-4b", "--draft", "another-head")
    assert "published" not in other.out


def test_published_figures_have_the_ratios_that_their_paper_states() -> None:
    """DSpark over Eagle3 +26.7 to +30.9 %, over DFlash +16.3 to +18.4 %, in mean tau."""

    def mean(name: str) -> float:
        published = PAIRS[name].published
        assert published is not None and len(published.tau) == 9
        return sum(published.tau.values()) / 9

    for size in ("qwen3-4b", "qwen3-8b"):
        assert 0.267 <= round(mean(size) / mean(f"{size}:eagle3") - 1, 3) <= 0.309
        assert 0.163 <= round(mean(size) / mean(f"{size}:dflash") - 1, 3) <= 0.184


def test_a_dry_run_tells_what_would_be_attached(
    dspark: Callable[..., Any], attached: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("DSPARK_HOME", str(tmp_path))
    monkeypatch.setattr("dspark.hub.memory_fit.rooms", lambda: [Room("cpu", 10**12, 4)])
    outcome = dspark("graft", "qwen3-4b", "--dry-run")
    assert (outcome.code, attached) == (0, [])
    assert "the head of qwen3-4b would be attached" in outcome.err
    assert "from deepseek-ai/dspark_qwen3_4b_block7" in outcome.out
    plan = json.loads(dspark("graft", "--base", "Qwen/Qwen3-4B", "--dry-run", "--json").out)
    assert plan["pair"] == "qwen3-4b"


def test_an_unknown_base_is_told_before_anything_else(dspark: Callable[..., Any]) -> None:
    outcome = dspark("graft", "--base", "nope", "--dry-run", "--prompts", "x")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "no pair is called 'nope'" in outcome.err
