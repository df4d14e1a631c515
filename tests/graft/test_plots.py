"""Pictures of a run from its metrics alone; without matplotlib, one line says what to install."""

import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspark.errors import InputError, StorageError
from dspark.graft.judge.plots import draw_run

PNG = b"\x89PNG\r\n\x1a\n"
RELIABILITY = ("reliability.png", "reliability-greedy.png")


def _figures(kind: str, step: int) -> dict[str, Any]:
    return {
        "kind": kind,
        "step": step,
        "cross_entropy": 6.0 / step,
        "l1": 1.5 / step,
        "confidence": 0.7,
        "tau": 1.0 + step / 10,
        "acceptance_by_position": [0.5, 0.3 + step / 100],
    }


def _calibration() -> dict[str, Any]:
    bins = [{"rounds": 9, "survival": 0.2, "accepted": 0.1}]
    positions = [{"ece": 0.1, "noise": 0.01, "auc": None, "bins": bins}] * 2
    figures = {"before": positions, "after": positions}
    return {"kind": "calibration", "step": 6, "sampled": figures, "greedy": figures}


def _write(out: Path, lines: list[dict[str, Any]]) -> None:
    (out / "training").mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (out / "training" / "metrics.jsonl").write_text(text + '{"kind": "st')  # torn by a kill


@pytest.fixture
def out(tmp_path: Path) -> Path:
    lines = [_figures("step", step) for step in range(1, 7)]
    _write(tmp_path, [*lines, _figures("held_out", 3), _figures("held_out", 6), _calibration()])
    return tmp_path


def test_every_picture_is_drawn(out: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = draw_run(out)
    names = ["loss.png", "tau.png", "acceptance.png", *RELIABILITY]
    assert [path.name for path in drawn] == names
    assert sorted(path.name for path in (out / "plots").iterdir()) == sorted(names)
    for path in drawn:
        assert path.read_bytes().startswith(PNG) and path.stat().st_size > 5_000


def test_a_run_without_calibration_has_no_reliability_diagram(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    _write(tmp_path, [_figures("step", 1), _figures("held_out", 1)])
    assert [path.name for path in draw_run(tmp_path)] == ["loss.png", "tau.png", "acceptance.png"]


def test_without_steps_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no step"):
        draw_run(tmp_path)


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "__import__", refuse)
        yield


def test_the_hint_names_the_extra(out: Path, no_matplotlib: None) -> None:
    with pytest.raises(InputError) as caught:
        draw_run(out)
    assert '[plots]"' in caught.value.hint
    assert not (out / "plots").exists()


def test_a_folder_that_cannot_be_written_is_named(out: Path) -> None:
    pytest.importorskip("matplotlib")
    (out / "plots").write_text("in the way")
    with pytest.raises(StorageError, match=r"loss\.png"):
        draw_run(out)
