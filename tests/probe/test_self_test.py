"""The probe names what is wrong with a pair that was trained otherwise than it is run."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark.config import RuntimeConfig
from dspark.errors import InputError
from dspark.hub.catalog.pairs import PairFiles
from dspark.probe.material import default_prompts
from dspark.probe.self_test import ProbeReport, probe
from dspark.progress import follow
from tests.graft import toy_pair
from tests.graft.toy_pair import Habit, Sound, Trainee

RUNTIME = RuntimeConfig(device="cpu", dtype="float32")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def eagle3(sound: Sound, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_pair.write_eagle3(sound.base, tmp_path_factory.mktemp("eagle3"))


def _probe(base: Path, head: Path | None) -> ProbeReport:
    report = follow(probe(PairFiles("toy", base, head), RUNTIME, toy_pair.prompts(28)))
    return report


def test_a_sound_pair_has_no_fault(sound: Sound) -> None:
    report = _probe(sound.base, sound.head)
    assert report.fault is None
    assert min(report.acceptance_by_position) > 0.3
    assert report.tau > 1.5
    assert report.calibration == "none"
    assert len(report.trials) >= 15


@dataclass(frozen=True)
class Training:
    """A head that goes on learning from the sound one, or from nothing, in another habit."""

    habit: Callable[[Trainee], Habit]
    steps: int = 100
    is_fresh: bool = False

    def __call__(self, sound: Sound, folder: Path) -> Path:
        trainee = Trainee(sound.base) if self.is_fresh else copy.copy(sound.trainee)
        trainee.head = copy.deepcopy(trainee.head)
        trainee.train(self.steps, self.habit(trainee))
        return trainee.write(folder)


def _planted(head: Path, folder: Path, **settings: Any) -> Path:
    shutil.copytree(head, folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | settings))
    return folder


def _config(**settings: Any) -> Callable[[Sound, Path], Path]:
    return lambda sound, folder: _planted(sound.head, folder, **settings)


def _tensors(change: Callable[[Tensors], Tensors]) -> Callable[[Sound, Path], Path]:
    def rewrite(sound: Sound, folder: Path) -> Path:
        shutil.copytree(sound.head, folder)
        tensors = load_file(folder / "model.safetensors")
        changed = {n: t.clone().contiguous() for n, t in (tensors | change(tensors)).items()}
        save_file(changed, folder / "model.safetensors")
        return folder

    return rewrite


def _joined_backwards(tensors: Tensors) -> Tensors:
    first, second = tensors["fc.weight"].chunk(2, dim=1)
    return {"fc.weight": torch.cat([second, first], dim=1)}


def _swapped_tables(tensors: Tensors) -> Tensors:
    first, second = "markov_head.markov_w1.weight", "markov_head.markov_w2.weight"
    return {first: tensors[second], second: tensors[first]}


ROPE = {"rope_type": "default", "rope_theta": 30.0}
FAULTS: dict[str, tuple[Callable[[Sound, Path], Path], str]] = {
    "row": (
        Training(lambda _: Habit(blocks=toy_pair.one_row_later)),
        "they begin one row later",
    ),
    "taps too high": (_config(target_layer_ids=[1, 3]), "too high: [0, 2] is meant"),
    "taps too low": (_config(target_layer_ids=[-1, 1]), "too low: [0, 2] is meant"),
    "tap order": (_tensors(_joined_backwards), "joined in the wrong order: [2, 0] is meant"),
    "taps after the norm": (
        Training(lambda trainee: Habit(taps=toy_pair.normed(trainee.target))),
        "after the target's final norm",
    ),
    "RoPE base": (_config(rope_parameters=ROPE), "the RoPE base is 10000,"),
    "no head norms": (
        Training(
            lambda _: Habit(without=("q_norm", "k_norm"), loudness={"q_proj": 3.0, "k_proj": 3.0})
        ),
        "no norms on queries and keys",
    ),
    "no feature norm": (
        Training(lambda _: Habit(without=("hidden_norm",), loudness={"fc": 10.0})),
        "context features are not normalised",
    ),
    "mask token": (
        _config(mask_token_id=toy_pair.MASK - 1),
        f"the mask token is {toy_pair.MASK},",
    ),
    "token before": (  # from the start: the tables would hold on to what they know
        Training(lambda _: Habit(blocks=toy_pair.token_before), steps=110, is_fresh=True),
        "expects the token before",
    ),
    "swapped tables": (
        _tensors(_swapped_tables),
        "two tables of the sequential head are swapped",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_the_one_that_is_named(name: str, sound: Sound, tmp_path: Path) -> None:
    plant, fault = FAULTS[name]
    report = _probe(sound.base, plant(sound, tmp_path / "head"))
    assert fault in (report.fault or ""), report.trials[:3]


def test_a_head_one_position_later(sound: Sound, tmp_path: Path) -> None:
    """To such a head a mask of the next row looks the same, so that either fault may be named."""
    plant = Training(lambda _: Habit(blocks=toy_pair.one_position_later))
    report = _probe(sound.base, plant(sound, tmp_path / "head"))
    named = [trial.fault for trial in report.trials if trial.is_better]
    assert any("positions are one too low" in fault for fault in named[:2]), report.trials[:3]


def test_a_sound_eagle3_head_has_no_fault(sound: Sound, eagle3: Path) -> None:
    report = _probe(sound.base, eagle3)
    assert report.fault is None
    assert report.acceptance_by_position[0] > 0.3


@pytest.mark.parametrize("name", ["taps too high", "RoPE base"])
def test_a_wrong_eagle3_config(name: str, sound: Sound, eagle3: Path, tmp_path: Path) -> None:
    plant, fault = FAULTS[name]
    report = _probe(sound.base, plant(replace(sound, head=eagle3), tmp_path / "head"))
    assert fault in (report.fault or ""), report.trials[:3]


def test_what_cannot_be_probed(sound: Sound) -> None:
    with pytest.raises(InputError, match="without a head"):
        _probe(sound.base, None)
    with pytest.raises(InputError, match="3 of 4"):
        list(probe(PairFiles("toy", sound.base, sound.head), RUNTIME, toy_pair.prompts(3)))


def test_prompts_of_our_own_are_the_default(sound: Sound) -> None:
    assert len(default_prompts(sound.base)) > 8
