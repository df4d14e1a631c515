"""Known miscalibration is found and mended, judged on rounds that the fit has not seen."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dspark.bench.reliability import (
    expected_calibration_error,
    expected_noise,
    ranking_quality,
)
from dspark.checkpoints.deepspec import read_head, read_head_config
from dspark.checkpoints.head_config import Calibration
from dspark.config import RuntimeConfig, StopConfig
from dspark.engine.request import Request
from dspark.events import Round
from dspark.graft.judge.calibrate import (
    Calibrated,
    JudgedRounds,
    calibrate_head,
    fit_calibration,
    fit_shifts,
    fit_temperatures,
    judge,
    reliability,
)
from dspark.graft.judge.open_target import OpenTarget
from dspark.hub.catalog.pairs import PairFiles

GOLDEN = Path(__file__).parents[1] / "conformance"
BENT = (2.0, 0.5, 1.5)


def synthetic(num_rounds: int, bent_by: tuple[float, ...], seed: int) -> JudgedRounds:
    """Rounds whose true logits are known; the head says them multiplied by `bent_by`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_rounds, len(bent_by))
    true = 0.5 + 1.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    kept = torch.rand(shape, generator=generator, dtype=torch.float64) < true.sigmoid()
    said = true * torch.tensor(bent_by, dtype=torch.float64)
    return JudgedRounds(said, kept.int().cumprod(dim=1).sum(dim=1))


@pytest.mark.parametrize("bent_by", [BENT, (1.0, 1.0, 1.0)])
def test_the_bend_of_each_position_is_found(bent_by: tuple[float, ...]) -> None:
    fitted = fit_temperatures(synthetic(20_000, bent_by, seed=1))
    assert fitted == pytest.approx(bent_by, rel=0.05)
    fresh = synthetic(20_000, bent_by, seed=2)
    assert max(each.ece for each in reliability(fresh, fitted)) < 0.02
    if bent_by == BENT:
        before = [each.ece for each in reliability(fresh, (1.0,) * 3)]
        assert before[0] > 0.08 and min(before) > 0.02


def test_few_rounds_do_not_lead_far_astray() -> None:
    fitted = fit_temperatures(synthetic(1_500, BENT, seed=3))
    fresh = synthetic(20_000, BENT, seed=4)
    raw = reliability(fresh, (1.0,) * 3)
    for before, after in zip(raw, reliability(fresh, fitted), strict=True):
        assert after.ece < min(0.03, before.ece)


@pytest.mark.parametrize("flattery", [(-0.7, -0.7, -0.7), (1.1, 0.0, -0.6)])
def test_what_each_positions_logits_are_off_by_is_found(flattery: tuple[float, ...]) -> None:
    """Temperatures alone cannot mend it."""
    fitted = synthetic(20_000, BENT, seed=8).shifted(flattery)
    fresh = synthetic(20_000, BENT, seed=9).shifted(flattery)
    fit = fit_calibration(fitted)
    assert fit.shifts == pytest.approx([-each for each in flattery], abs=0.1)
    assert fit.temperatures == pytest.approx(BENT, rel=0.08)
    assert max(e.ece for e in reliability(fresh.shifted(fit.shifts), fit.temperatures)) < 0.02
    bare = reliability(fresh, fit_temperatures(fitted))
    assert max(each.ece for each in bare) > 0.02


@pytest.mark.parametrize("accepted", [0, 3])
def test_rounds_that_all_end_alike_shift_nothing(accepted: int) -> None:
    rounds = JudgedRounds(torch.randn(50, 3).double(), torch.full((50,), accepted))
    assert fit_shifts(rounds) == (0.0, 0.0, 0.0)


def test_a_position_whose_drafts_all_end_alike_is_not_shifted() -> None:
    """The first is always accepted, the third never reached."""
    generator = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(500, 3, generator=generator).double()
    kept = torch.rand(500, generator=generator) < (logits[:, 1] + 1).sigmoid()
    shifts = fit_shifts(JudgedRounds(logits, 1 + kept.long()))
    assert shifts[0] == shifts[2] == 0.0
    assert shifts[1] == pytest.approx(1.0, abs=0.4)


def test_the_error_of_a_true_head_is_the_expected_noise() -> None:
    judged = [reliability(synthetic(800, (1.0,), seed), (1.0,))[0] for seed in range(40)]
    mean_error = sum(each.ece for each in judged) / len(judged)
    mean_noise = sum(each.noise for each in judged) / len(judged)
    assert mean_noise == pytest.approx(mean_error, rel=0.1)


def test_ece_of_a_case_worked_by_hand() -> None:
    survival = torch.tensor([0.11, 0.19, 0.95, 1.0], dtype=torch.float64)
    survived = torch.tensor([True, False, True, False])
    expected = abs(0.11 + 0.19 - 1) / 4 + abs(0.95 + 1.0 - 1) / 4
    assert float(expected_calibration_error(survival, survived)) == pytest.approx(expected)
    assert float(expected_noise(survival.round())) == 0.0


def test_auc_equals_counting_every_pair() -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        survival = (torch.rand(60, generator=generator) * 12).round() / 12  # with ties
        survived = torch.rand(60, generator=generator) < 0.2 + 0.6 * survival
        kept, refused = survival[survived][:, None], survival[~survived]
        counted = float(((kept > refused) + 0.5 * (kept == refused)).float().mean())
        assert ranking_quality(survival, survived) == pytest.approx(counted)
    assert ranking_quality(survival, torch.ones(60, dtype=torch.bool)) is None


def test_the_table_adds_up_to_the_ece() -> None:
    rounds = synthetic(3_000, BENT, seed=6)
    for each in reliability(rounds, (1.0,) * 3):
        assert sum(b.rounds for b in each.bins) == 3_000
        gaps = sum(b.rounds * abs(b.survival - b.accepted) for b in each.bins)
        assert gaps / 3_000 == pytest.approx(each.ece)


def test_without_rounds_nothing_is_fitted() -> None:
    none = Calibration.none(2)
    assert fit_calibration(judge([], Calibration((3.0, 1.0), (0.5, 0.0)))) == none


def _round(confidence: tuple[float, ...], verified: int, accepted: int) -> Round:
    return Round(
        0, 0, 1, (5,) * len(confidence), confidence, verified, accepted, 2, (), (), 9, 0, 0, 0
    )


@pytest.mark.parametrize("shifts", [(0.0, 0.0, 0.0), (-0.8, 0.3, 2.0)])
def test_logits_are_recovered_from_whole_rounds_alone(shifts: tuple[float, ...]) -> None:
    logits = torch.tensor([[1.0, -2.0, 4.0]])
    said = tuple(((logits + torch.tensor(shifts)) / torch.tensor(BENT)).sigmoid()[0].tolist())
    events = [_round(said, 3, 2), _round(said, 2, 2), _round((1.0, 0.0, 0.5), 3, 0)]
    rounds = judge(events, Calibration(BENT, shifts))
    assert rounds.accepted.tolist() == [2, 0]
    torch.testing.assert_close(rounds.logits[0], logits[0].double(), rtol=1e-5, atol=1e-5)
    assert rounds.logits.isfinite().all()


@pytest.fixture
def files(tmp_path: Path) -> PairFiles:
    shutil.copytree(GOLDEN / "vanilla" / "draft", tmp_path / "draft")
    return PairFiles("golden", GOLDEN / "vanilla" / "target", tmp_path / "draft")


@contextmanager
def opened(files: PairFiles) -> Iterator[tuple[OpenTarget, Path]]:
    assert files.draft is not None
    with OpenTarget(files, [files.draft], RuntimeConfig("cpu", "float32")) as target:
        yield target, files.draft


def calibrated(
    files: PairFiles, prompts: Sequence[tuple[int, ...]], max_tokens: int
) -> Calibrated | None:
    with opened(files) as (target, head):
        return calibrate_head(target, head, prompts, max_tokens)


PROMPTS = [
    tuple(torch.randint(60, (6,), generator=torch.Generator().manual_seed(k)).tolist())
    for k in range(8)
]


def test_a_head_is_calibrated_in_place(files: PairFiles) -> None:
    assert files.draft is not None
    _, raw_tensors = read_head(files.draft)
    result = calibrated(files, PROMPTS, 30)
    assert result is not None
    config, tensors = read_head(files.draft)
    assert all(t.equal(tensors[name]) for name, t in raw_tensors.items())
    raw = json.loads((files.draft / "config.json").read_text())
    kinds = {
        "sampled": (result.sampled, config.sampled_calibration),
        "greedy": (result.greedy, config.greedy_calibration),
    }
    for kind, (fit, read) in kinds.items():
        assert fit.fitted_rounds > 0 and fit.rounds > 0 and fit.calibration == read
        assert any(t != 1.0 for t in fit.calibration.temperatures) and any(fit.calibration.shifts)
        assert raw["graft"]["calibration"][kind] == fit.figures()
    assert result.sampled.calibration != result.greedy.calibration

    again = calibrated(files, PROMPTS, 30)
    assert again is not None
    for now, then in ((again.sampled, result.sampled), (again.greedy, result.greedy)):
        assert now.calibration.temperatures == pytest.approx(
            then.calibration.temperatures, rel=0.02
        )
        assert now.calibration.shifts == pytest.approx(then.calibration.shifts, abs=0.05)
        for before, after in zip(now.before, then.after, strict=True):
            assert before.ece == pytest.approx(after.ece, abs=0.02)


def test_a_new_fit_of_greedy_requests_is_judged_as_decoding_will_use_it(files: PairFiles) -> None:
    """What the fit promises for fresh prompts is what the engine's own confidences say there."""
    with opened(files) as (target, head):
        result = calibrate_head(target, head, PROMPTS, 30)
        assert result is not None
        requests = [Request(p, stop=StopConfig(max_tokens=30)) for p in PROMPTS[1::2]]
        with target.with_head(head) as session:
            rounds = [e for e in session.engine.run(requests) if isinstance(e, Round)]
    judged = [r for r in rounds if r.confidence is not None and r.verified == len(r.draft)]
    assert len(judged) == result.greedy.rounds
    survival = torch.tensor([r.confidence for r in judged], dtype=torch.float64).cumprod(1)
    accepted = torch.tensor([r.accepted for r in judged])
    for k, promised in enumerate(result.greedy.after):
        ece = expected_calibration_error(survival[:, k].contiguous(), accepted > k)
        assert float(ece) == pytest.approx(promised.ece, abs=0.03)


def test_one_prompt_is_too_few_and_changes_nothing(files: PairFiles) -> None:
    assert files.draft is not None
    before = (files.draft / "config.json").read_bytes()
    assert calibrated(files, [(1, 2, 3)], 20) is None
    assert (files.draft / "config.json").read_bytes() == before


def test_a_head_without_confidence_is_left_alone() -> None:
    files = PairFiles("golden", GOLDEN / "dflash" / "target", GOLDEN / "dflash" / "draft")
    assert not read_head_config(GOLDEN / "dflash" / "draft").has_confidence
    assert calibrated(files, [(1, 2), (3, 4)], 5) is None
