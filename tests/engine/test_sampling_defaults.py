"""A model's own sampling: what its generation_config.json states, and greedy where it does not."""

import json
import shutil

import pytest

from dspark.config import SamplingChoice, SamplingConfig
from dspark.engine.sampling_defaults import sampling_defaults
from tests.engine.pairs import open_pair


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (None, SamplingConfig()),
        ({}, SamplingConfig()),
        # Without do_sample the other values are what generate() of transformers ignores, too.
        ({"temperature": 0.6, "top_p": 0.9}, SamplingConfig()),
        ({"do_sample": False, "temperature": 0.6}, SamplingConfig()),
        ({"do_sample": None, "top_k": 20}, SamplingConfig()),
        # Llama 3 and Qwen3, as they are published.
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, SamplingConfig(0.6, 0, 0.9)),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
            SamplingConfig(0.6, 20, 0.95),
        ),
        ({"do_sample": True}, SamplingConfig(1.0)),
        ({"do_sample": True, "temperature": 0}, SamplingConfig(0.0)),
        ({"do_sample": True, "temperature": 1, "top_k": 0}, SamplingConfig(1.0)),
        # Values that mean nothing keep every token.
        ({"do_sample": True, "temperature": None, "top_k": -1, "top_p": 0}, SamplingConfig(1.0)),
        ({"do_sample": True, "temperature": -1, "top_k": "x", "top_p": 2}, SamplingConfig(1.0)),
        ({"do_sample": True, "temperature": True, "top_k": 5.0}, SamplingConfig(1.0)),
    ],
)
def test_what_the_file_states(tmp_path, stated, expected):
    if stated is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(stated))
    assert sampling_defaults(tmp_path) == expected


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (SamplingChoice(), SamplingConfig(0.6, 20, 0.95)),
        (SamplingChoice(temperature=0.0), SamplingConfig(0.0, 20, 0.95)),
        (SamplingChoice(top_k=0), SamplingConfig(0.6, 0, 0.95)),
        (SamplingChoice(top_p=1.0), SamplingConfig(0.6, 20, 1.0)),
        (SamplingChoice(seed=0), SamplingConfig(0.6, 20, 0.95, seed=0)),
    ],
)
def test_a_choice_wins_one_by_one(choice, expected):
    assert choice.over(SamplingConfig(0.6, 20, 0.95)) == expected


def test_a_session_knows_its_targets_own(tiny_llama_dir, tmp_path):
    folder = shutil.copytree(tiny_llama_dir, tmp_path / "target")
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.5}')
    session = open_pair(folder, None)
    assert session.sampling_defaults == SamplingConfig(temperature=0.5)
    assert (
        session.with_schedule(session.engine.config.schedule).sampling_defaults.temperature == 0.5
    )
