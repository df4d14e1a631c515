"""A row of a model with routed experts costs those that it brings: by finished rounds, and never by
the draft itself."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dspark.engine.schedule.acceptance import Acceptance
from dspark.engine.schedule.expected_gain import expected_gain
from dspark.engine.schedule.expert_prices import ExpertPrices
from dspark.engine.schedule.policies import AsyncSpsSchedule, SpsSchedule
from dspark.engine.schedule.sps_profile import SpsTable
from dspark.engine.schedule.sps_watch import SpsWatch
from dspark.targets.expert_use import ExpertShape, ExpertUse, expert_use
from tests.engine.pairs import GOLDEN, decode, golden, with_scheduler
from tests.engine.test_distribution import (
    FALSE_ALARM,
    NUM_SAMPLES,
    asks_of,
    chi_square_p,
    many_at_once,
)

FLASH = ExpertShape(layers=43, per_layer=256, per_token=6, num_bytes=13_369_344)
ROWS = (1, 2, 3, 4, 5, 6)
BLOCK = 5


def table(dense: float, reads: float, price: float) -> SpsTable:
    """Passes that take `dense` seconds and read the same experts whatever their rows."""
    seconds = dense + reads * price
    return SpsTable(
        ROWS,
        (seconds,) * len(ROWS),
        (1,),
        (0.0,),
        expert_reads=(reads,) * len(ROWS),
        expert_seconds=price,
    )


def test_experts_of_a_pass_are_counted():
    """Two layers, three rows: the second row brings one expert, the third none."""
    routes = torch.tensor([[[0, 1], [1, 2], [0, 2]], [[3, 4], [4, 3], [3, 4]]])
    assert expert_use(routes, [3]) == ExpertUse(((4, 1, 0),), 5)
    assert expert_use(routes, [1, 2]) == ExpertUse(((4,), (4, 1)), 5)
    far = torch.zeros(2, 5, dtype=torch.bool)
    far[0, 2] = far[1] = True
    assert expert_use(routes, [3], far).far == 3


def test_at_first_rows_count_as_independent():
    """Against counted draws."""
    prices = ExpertPrices(FLASH, BLOCK, 1e-4)
    generator = torch.Generator().manual_seed(0)
    ranks = torch.rand(600, 256, generator=generator)  # a layer's choices, row after row
    routes = ranks.topk(6).indices.view(100, 6, 6)  # 100 layers, 6 rows
    use = expert_use(routes, [6])
    assert prices.reads(6, 1) / 43 == pytest.approx(use.reads / 100, rel=0.01)
    for row in range(6):
        assert prices.new[row] / 43 == pytest.approx(use.new[0][row] / 100, rel=0.05)
    two = expert_use(routes, [3, 3])
    assert prices.reads(6, 2) / 43 == pytest.approx(two.reads / 100, rel=0.02)


def test_the_price_of_a_row_is_that_of_the_example():
    """65 GB/s for what is missed, 35 % hits, no overlap: 34 ms a row (reference, 6.1)."""
    rate = FLASH.num_bytes / 65e9
    prices = ExpertPrices(FLASH, BLOCK, 1e-12, far_seconds=rate, far_share=0.65)
    prices.new = [258.0] * 6
    priced = prices.priced(table(0.01, 258, 1e-12).curve(1))
    rows = [
        after - before
        for before, after in zip(priced.verify_seconds, priced.verify_seconds[1:], strict=False)
    ]
    assert rows == pytest.approx([0.0345] * 5, rel=0.01)


def test_measured_passes_that_shared_all_experts_do_not_hide_the_price():
    """A table of one token six times says that rows are free; the experts of a text are not."""
    price = 1e-3
    measured = table(0.05, 258, price)
    confident = torch.full((1, BLOCK), 0.5)
    assert SpsSchedule(measured).admit(confident, [BLOCK]) == [BLOCK]
    prices = ExpertPrices(FLASH, BLOCK, price)
    schedule = SpsSchedule(measured, prices)
    assert schedule.admit(confident, [BLOCK]) == [0]
    for _ in range(300):  # rows that bring a tenth
        prices.record(ExpertUse(((258, 26, 26, 26, 26, 26),), 388))
    assert schedule.admit(confident, [BLOCK])[0] >= 2
    assert prices.figures()["shared"][1] == pytest.approx(0.9, abs=0.01)


def test_parking_is_decided_by_the_same_prices():
    price, survival = 1e-3, [0.5**k for k in range(1, BLOCK + 1)]
    measured = table(0.05, 258, price)
    assert expected_gain(measured.curve(1), survival).pays
    prices = ExpertPrices(FLASH, BLOCK, price)
    assert not expected_gain(SpsSchedule(measured, prices).curve(1), survival).pays


def test_finished_rounds_correct_the_dense_part_and_the_prices_apart(tmp_path):
    """A machine whose passes take 60 ms and 1 ms for each expert, beside a table that says 50: the
    watch finds the level, and what the rows brought is not taken for it."""
    measured, shape = table(0.05, 258, 1e-3), FLASH
    schedule = SpsSchedule(measured, ExpertPrices(shape, BLOCK, 1e-3))
    watch = SpsWatch(schedule, Path(tmp_path) / "sps.json")
    for index in range(400):
        rows = 1 + index % 4
        new = (258, 100, 100, 100)[:rows]
        seconds = 0.06 + 1e-3 * sum(new)
        watch.follow(1, rows, 128, seconds, 0.001, has_drafts=True, use=ExpertUse((new,), sum(new)))
    curve = schedule.curve(1)
    for rows in (1, 2, 4):
        right = 0.06 + 1e-3 * (258 + 100 * (rows - 1))
        assert curve.verify(rows) == pytest.approx(right, rel=0.04)


def test_reads_that_memory_does_not_hold_are_priced_by_what_they_took(tmp_path):
    measured = table(0.05, 258, 1e-3)
    schedule = SpsSchedule(measured, ExpertPrices(FLASH, BLOCK, 1e-3, far_seconds=2e-3))
    watch = SpsWatch(schedule, Path(tmp_path) / "sps.json")
    for _ in range(300):
        use = ExpertUse(((258, 200),), 458, far=229)
        watch.follow(1, 2, 128, 0.05 + 229 * 1e-3 + 229 * 5e-3, 0.001, has_drafts=True, use=use)
    assert schedule.prices is not None
    assert schedule.prices.far_share == pytest.approx(0.5, abs=0.01)
    assert schedule.prices.far_seconds == pytest.approx(5e-3, rel=0.1)


# -- lossless: equal prefixes, equal decisions -----------------------------------------------------


def test_equal_prefixes_equal_decisions():
    """Over random prices, confidences and lengths of the shared prefix."""
    generator = torch.Generator().manual_seed(2)

    def draw(count: int, low: float, high: float) -> list[float]:
        return (low + (high - low) * torch.rand(count, generator=generator)).tolist()

    decisions = set()
    for _ in range(200):
        new, (dense, price, far) = draw(BLOCK + 1, 0, 300), draw(3, 1e-3, 1)
        prices = ExpertPrices(FLASH, BLOCK, price / 100, far_share=far, new=new)
        one, other = draw(BLOCK, 0.01, 0.99), draw(BLOCK, 0.01, 0.99)
        shared = int(torch.randint(0, BLOCK + 1, (), generator=generator))
        for kind in (SpsSchedule, AsyncSpsSchedule):
            lengths = [
                kind(table(dense / 5, 258, price / 100), prices).admit(
                    torch.tensor([block]), [BLOCK]
                )[0]
                for block in (one, [*one[:shared], *other[shared:]])
            ]
            assert min(lengths[0], shared) == min(lengths[1], shared)
            decisions.add(lengths[0])
    assert len(decisions) > 3


def test_the_best_length_of_the_whole_block_would_look_ahead():
    """The counterexample: with a row that brings much and later ones that bring nothing, the best
    length depends on confidences behind it, and the schedule's does not."""
    prices = ExpertPrices(FLASH, 3, 1e-3, new=[258, 250, 0, 0])
    measured = replace(table(0.05, 258, 1e-3))
    schedule = SpsSchedule(measured, prices)

    def best(block: list[float]) -> int:
        steps, survival, expected = schedule.curve(1).steps_per_second, 1.0, [1.0]
        for confidence in block:
            survival *= confidence
            expected.append(expected[-1] + survival)
        return max(range(4), key=lambda k: expected[k] * steps(k + 1))

    likely, unlikely = [0.6, 0.99, 0.99], [0.6, 0.01, 0.01]
    assert best(likely) > 0 == best(unlikely)  # the first draft's fate is decided by the others
    admitted = [schedule.admit(torch.tensor([each]), [3])[0] for each in (likely, unlikely)]
    assert admitted == [0, 0]


class _ChangingPrices(SpsSchedule):
    """After every round the prices are others, by what that round verified."""

    def admit(self, confidences, limits, depth=128):
        lengths = super().admit(confidences, limits, depth)
        assert self.prices is not None
        total = sum(lengths) % 7
        self.prices.new = [258.0, *(258.0 * ((total + row) % 3) / 2 for row in range(8))]
        self.prices.rounds += 1
        return lengths


@pytest.mark.counting
def test_sampled_output_is_exact_while_prices_change():
    golden_run = json.loads((GOLDEN / "vanilla" / "sampling.json").read_text())
    session = many_at_once(golden("vanilla", entropy=0))
    schedule = _ChangingPrices(table(0.05, 258, 1e-3), ExpertPrices(FLASH, 8, 1e-3))
    engine = with_scheduler(session, schedule)
    asks = asks_of("rejection", golden_run["prompt"], 2, NUM_SAMPLES, temperature=1.0)
    written = decode(engine, asks)
    assert chi_square_p(Counter(first for first, _ in written), golden_run["first"]) > FALSE_ALARM
    for first, expected in golden_run["second"].items():
        followers = Counter(second for f, second in written if f == int(first))
        assert chi_square_p(followers, expected) > FALSE_ALARM


def test_drafts_without_confidences_are_weighed_by_those_before_them():
    """Lookup's rows bring experts too: by how often finished rounds accepted such drafts, of which
    nothing is told without a scheduler that prices experts."""
    prices = ExpertPrices(FLASH, BLOCK, 1e-4)
    prices.new = [258.0] * 6
    schedule, limits = SpsSchedule(table(0.01, 258, 1e-4), prices), [5, 2]
    assert schedule.admit(None, limits) == limits
    schedule.acceptance = Acceptance(BLOCK)
    for _ in range(200):
        schedule.acceptance.record(verified=5, accepted=0)
    assert schedule.admit(None, limits) == [0, 0]
    for _ in range(4000):
        schedule.acceptance.record(verified=5, accepted=5)
    prices.new = [258.0] + [1.0] * 5  # the rows after the first bring none
    prices.rounds += 1
    assert schedule.admit(None, limits) == limits
