"""Our first 50 losses are DeepSpec's: benchmarks/vs_deepspec.py --golden wrote its numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.vs_deepspec import (
    CONFIG,
    MARKOV_TYPES,
    RECIPE,
    largest_difference,
    our_losses,
    settings_object,
)
from dspark.checkpoints.dspark_config import MarkovType
from dspark.config import GraftConfig

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    path = Path(__file__).parent / "golden" / "deepspec_loss.json"
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


@pytest.mark.parametrize("markov_type", MARKOV_TYPES)
def test_fifty_losses_are_those_of_deepspec(
    markov_type: MarkovType, golden: dict[str, Any]
) -> None:
    theirs = golden["losses"][markov_type]
    assert len(theirs) == 50
    assert theirs[-1][0] < 0.95 * theirs[0][0], "what does not learn would agree too easily"
    ours = our_losses(replace(CONFIG, markov_type=markov_type))
    assert largest_difference(ours, theirs) < TOLERANCE


def test_the_golden_numbers_are_of_these_settings(golden: dict[str, Any]) -> None:
    assert golden["settings"] == settings_object()


@pytest.mark.parametrize("name", RECIPE)
def test_defaults_are_those_that_were_compared(name: str) -> None:
    assert getattr(GraftConfig(), name) == getattr(CONFIG, name)
