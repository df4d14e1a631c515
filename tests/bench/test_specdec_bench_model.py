"""The adapter for NVIDIA's specdec_bench, against the engine's own rounds."""

import asyncio
import importlib.util
from itertools import chain
from pathlib import Path

import pytest

from dspark.config import SamplingConfig, StopConfig
from dspark.events import Round
from tests.engine.pairs import PROMPT, golden

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "specdec_bench_model.py"
END = 2_000_000  # no token


@pytest.fixture(scope="module")
def adapter():
    spec = importlib.util.spec_from_file_location("specdec_bench_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("algorithm", ["DSPARK", "NONE"])
def test_a_chunk_for_each_round_with_its_time(adapter, algorithm):
    with golden("vanilla") as session:
        model = adapter.DSparkModel("golden", 1, speculative_algorithm=algorithm, session=session)
        output = asyncio.run(model.run(list(PROMPT), 30, END))
        is_plain = algorithm == "NONE"
        events = list(session.generate(PROMPT, SamplingConfig(), StopConfig(30), plain=is_plain))
        model.stop()
    (chunks,) = output["output_ids"]
    rounds = [event for event in events if isinstance(event, Round) and event.pieces]
    assert [len(chunk) for chunk in chunks] == [1, *(len(each.pieces) for each in rounds)]
    assert [*chain(*chunks)] == list(events[-1].token_ids)
    assert len(output["token_times"]) == 1 + len(chunks)
    assert output["token_times"] == sorted(output["token_times"])
    assert (max(map(len, chunks)) > 1) is not is_plain


def test_an_end_token_is_left_out(adapter):
    with golden("vanilla") as session:
        model = adapter.DSparkModel("golden", session=session)
        (whole,) = asyncio.run(model.run(list(PROMPT), 12, END))["output_ids"]
        end = [*chain(*whole)][-1]
        (cut,) = asyncio.run(model.run(list(PROMPT), 12, end))["output_ids"]
    assert [*chain(*cut)] == [token for token in [*chain(*whole)] if token != end]


def test_several_at_a_time_are_refused(adapter):
    with pytest.raises(SystemExit, match="one request at a time"):
        adapter.DSparkModel("golden", 4)
