"""Token ids and rounds equal the golden runs of the reference implementation (float32, greedy)."""

import json
from pathlib import Path

import pytest
import torch

from dspark.config import EngineConfig, RuntimeConfig, SamplingConfig, ScheduleConfig, StopConfig
from dspark.engine.session import Session, open_session
from dspark.events import Finished, Round
from dspark.hub.catalog.pairs import PairFiles
from dspark.progress import follow

HERE = Path(__file__).parent
VARIANTS = ("vanilla", "gated", "rnn", "dflash", "dflash2", "domino", "eagle3", "gemma4")


def load(variant: str, threshold: float = 0.0) -> Session:
    files = PairFiles(variant, HERE / variant / "target", HERE / variant / "draft")
    schedule = ScheduleConfig("threshold" if threshold else "full", threshold)
    session = follow(
        open_session(
            files,
            RuntimeConfig("cpu", "float32"),
            EngineConfig(schedule=schedule, prefill_chunk=50),
        )
    )
    return session


def cases(variant: str) -> list[dict]:
    return json.loads((HERE / variant / "expected.json").read_text())


@pytest.mark.parametrize("variant", VARIANTS)
def test_rounds_equal_the_reference(variant: str) -> None:
    for case in cases(variant):
        session = load(variant, case["confidence_threshold"])
        stop = StopConfig(max_tokens=case["max_new_tokens"])
        events = list(session.generate(case["prompt"], SamplingConfig(), stop))
        rounds = [event for event in events if isinstance(event, Round)]
        finished = events[-1]
        assert isinstance(finished, Finished)
        assert [*case["prompt"], *finished.token_ids] == case["output"]
        assert len(rounds) == len(case["rounds"])
        for ours, golden in zip(rounds, case["rounds"], strict=True):
            verify_ids = [ours.anchor, *ours.draft[: ours.verified]]
            assert verify_ids == golden["verify_ids"]
            assert (ours.accepted, ours.next) == (golden["accepted"], golden["next"])
            if golden["conf"] is not None:
                assert ours.confidence is not None
                kept = torch.tensor(ours.confidence[: ours.verified])
                torch.testing.assert_close(
                    kept, torch.tensor(golden["conf"]).sigmoid(), atol=1e-4, rtol=0
                )


@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_decoding_equals_the_reference(variant: str) -> None:
    session = load(variant)
    for case in cases(variant):
        stop = StopConfig(max_tokens=case["max_new_tokens"])
        *_, finished = session.generate(case["prompt"], SamplingConfig(), stop, plain=True)
        assert [*case["prompt"], *finished.token_ids] == case["ar"]
