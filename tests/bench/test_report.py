"""The arithmetic of a bench, on scripted runs."""

from collections.abc import Sequence

import pytest

from dspark.bench.config import BenchConfig
from dspark.bench.prompts import BenchPrompt
from dspark.bench.report import Difference, Figure
from dspark.bench.runner import BenchProgress, run_bench
from dspark.bench.summary import (
    Run,
    acceptance_by_position,
    decode_rate,
    end_to_end_rate,
    summarise,
)
from dspark.config import SamplingConfig
from dspark.errors import InputError
from dspark.events import DecodeStats, Finished, PrefillProgress, Round
from dspark.progress import follow


def make_round(drafted: int, verified: int, accepted: int) -> Round:
    return Round(
        request_id=0,
        index=0,
        anchor=1,
        draft=tuple(range(drafted)),
        confidence=None,
        verified=verified,
        accepted=accepted,
        next=2,
        pieces=(),
        rejected=(),
        context_tokens=9,
        draft_seconds=0.1,
        verify_seconds=0.1,
        seconds=0.2,
    )


def make_run(
    arm: str,
    *,
    trial: int = 0,
    prompt: int = 0,
    tokens: Sequence[int] = (5, 6, 7),
    seconds: float = 1.0,
    rounds: Sequence[Round] = (),
) -> Run:
    stats = DecodeStats(
        prompt_tokens=4,
        new_tokens=len(tokens),
        rounds=len(rounds),
        drafted=sum(len(each.draft) for each in rounds),
        verified=sum(each.verified for each in rounds),
        accepted=sum(each.accepted for each in rounds),
        prefill_seconds=1.0,
        decode_seconds=seconds,
    )
    finished = Finished(0, "max_tokens", tuple(tokens), "", stats)
    return Run(arm, trial, prompt, tuple(rounds), finished)


PROMPTS = [BenchPrompt("chat", (1, 2)), BenchPrompt("math", (3, 4))]


def no_logits(token_ids):
    raise AssertionError("identical output needs no logits")


def test_decode_rate_leaves_the_prompts_own_token_out():
    stats = [make_run("plain", tokens=(1, 2, 3), seconds=0.5).finished.stats] * 2
    assert decode_rate(stats) == 4 / 1.0
    assert end_to_end_rate(stats) == 6 / 3.0


def test_speedup_is_the_median_of_paired_trials_not_the_ratio_of_medians():
    plain, dspark = Figure((10.0, 20.0, 40.0)), Figure((30.0, 20.0, 44.0))
    assert dspark.median / plain.median == 1.5
    assert dspark.paired_ratio(plain).median == 1.1
    assert (dspark.low, dspark.high) == (20.0, 44.0)


def test_acceptance_counts_by_place_in_the_block():
    rounds = [make_round(3, 3, 3), make_round(3, 2, 0), make_round(3, 1, 1), make_round(3, 0, 0)]
    counts = [
        (each.position, each.verified, each.reached, each.accepted)
        for each in acceptance_by_position(rounds)
    ]
    assert counts == [(1, 3, 3, 2), (2, 2, 1, 1), (3, 1, 1, 1)]
    second = acceptance_by_position(rounds)[1]
    assert (second.rate, second.conditional_rate) == (0.5, 1.0)


def test_the_report_sums_trials_prompts_and_categories():
    runs = [
        make_run("plain", trial=trial, prompt=prompt, seconds=2.0 / (trial + 1))
        for trial in range(3)
        for prompt in range(2)
    ]
    runs += [
        make_run(
            "dspark",
            trial=trial,
            prompt=prompt,
            seconds=1.0 / (trial + 1),
            rounds=[make_round(3, 3, 2 * prompt)],
        )
        for trial in range(3)
        for prompt in range(2)
    ]
    report = summarise(runs, PROMPTS, BenchConfig(), no_logits)
    assert report.plain.decode.trials == (1.0, 2.0, 3.0)
    assert report.dspark.decode.median == 4.0
    assert report.speedup.trials == (2.0, 2.0, 2.0)
    assert report.tau == 2.0
    assert report.verified_per_round == 3.0
    assert report.is_identical is True and report.difference is None
    assert [(each.category, each.tau) for each in report.categories] == [("chat", 1), ("math", 3)]


def test_the_first_differing_token_comes_with_its_logit_gap():
    asked = []

    def next_logits(token_ids):
        asked.append(list(token_ids))
        return [0.0] * 6 + [2.5, 2.25]

    runs = [
        make_run("plain", prompt=0),
        make_run("dspark", prompt=0),
        make_run("plain", prompt=1, tokens=(5, 6, 7)),
        make_run("dspark", prompt=1, tokens=(5, 7, 7)),
    ]
    report = summarise(runs, PROMPTS, BenchConfig(), next_logits)
    assert report.is_identical is False
    assert report.differing_prompts == 1
    assert report.difference == Difference(1, 1, 6, 7, 0.25)
    assert asked == [[3, 4, 5]]


def test_an_answer_that_ends_early_differs_too():
    runs = [make_run("plain", tokens=(5, 6)), make_run("dspark", tokens=(5,))]
    report = summarise(runs, PROMPTS[:1], BenchConfig(), no_logits)
    assert report.difference == Difference(0, 1, 6, None, None)


def test_plain_decoding_that_differs_from_itself_is_told():
    runs = [
        make_run("plain", trial=0),
        make_run("dspark", trial=0),
        make_run("plain", trial=1, tokens=(5, 6, 6)),
        make_run("dspark", trial=1),
    ]
    report = summarise(runs, PROMPTS[:1], BenchConfig(), lambda token_ids: [0.0] * 8)
    assert report.is_identical is False


def test_output_sampled_with_a_seed_is_compared():
    config = BenchConfig(sampling=SamplingConfig(temperature=1.0, seed=3))
    for tokens in ((1, 2, 3), (9, 9, 9)):
        runs = [make_run("plain", tokens=(1, 2, 3)), make_run("dspark", tokens=tokens)]
        report = summarise(runs, PROMPTS[:1], config, lambda token_ids: [0.0] * 10)
        assert report.is_identical is (tokens == (1, 2, 3))


def test_output_sampled_without_a_seed_is_not_compared():
    runs = [make_run("plain"), make_run("dspark", tokens=(9, 9, 9))]
    config = BenchConfig(sampling=SamplingConfig(temperature=1.0))
    assert summarise(runs, PROMPTS[:1], config, no_logits).is_identical is None


class ScriptedSession:
    """Answers in one round and remembers who was asked in which order."""

    name = "scripted"

    def __init__(self, has_drafter: bool = True) -> None:
        self.has_drafter = has_drafter
        self.asked: list[tuple[tuple[int, ...], bool, int]] = []

    def forget_texts(self):
        pass

    def generate(self, prompt_ids, sampling, stop, *, plain=False):
        self.asked.append((tuple(prompt_ids), plain, stop.max_tokens))
        yield PrefillProgress(0, len(prompt_ids), len(prompt_ids))
        only_round = make_round(0, 0, 0) if plain else make_round(3, 3, 1)
        yield only_round
        yield make_run("", rounds=[only_round]).finished

    def next_logits(self, token_ids):
        raise AssertionError("the answers are the same")


def test_a_bench_warms_up_and_takes_turns():
    session = ScriptedSession()
    progress = []
    report = follow(
        run_bench(session, PROMPTS, BenchConfig(trials=3, max_tokens=9)), progress.append
    )
    warm_up, measured = session.asked[:2], session.asked[2:]
    assert [tokens for _, _, tokens in warm_up] == [8, 8]
    turns = "plain dspark dspark plain, dspark plain plain dspark, plain dspark dspark plain"
    assert [plain for _, plain, _ in measured] == [
        arm == "plain" for arm in turns.replace(",", "").split()
    ]
    assert {tokens for _, _, tokens in measured} == {9}
    assert [each.done for each in progress] == list(range(13))
    assert isinstance(progress[-1], BenchProgress) and progress[-1].total == 12
    assert len(report.plain.decode.trials) == 3
    assert report.tau == 2.0


def test_without_a_head_there_is_nothing_to_measure():
    with pytest.raises(InputError, match="no head"):
        list(run_bench(ScriptedSession(has_drafter=False), PROMPTS))


@pytest.mark.parametrize(("prompts", "trials"), [([], 3), (PROMPTS, 0)])
def test_nothing_to_measure_is_refused(prompts, trials):
    with pytest.raises(InputError):
        list(run_bench(ScriptedSession(), prompts, BenchConfig(trials=trials)))


class InterruptedSession:
    """Answers with the same tokens until Ctrl+C comes at the given answer."""

    has_drafter = True
    name = "scripted"

    def __init__(self, after: int) -> None:
        self._left = after

    def forget_texts(self):
        pass

    def generate(self, prompt_ids, sampling, stop, *, plain):
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        yield make_run("plain" if plain else "dspark").finished

    def next_logits(self, token_ids):
        raise AssertionError("nothing differs")


def bench_until(after: int, trials: int = 3):
    """Warm-up takes an answer of each arm."""
    session = InterruptedSession(after + 2)
    report = follow(run_bench(session, PROMPTS, BenchConfig(trials=trials)))
    return report


def test_ctrl_c_keeps_the_trials_that_are_complete():
    per_trial = 2 * len(PROMPTS)
    for after in (per_trial, 2 * per_trial - 1):
        report = bench_until(after)
        assert (report.is_partial, report.trials, report.prompts) == (True, 1, len(PROMPTS))
    assert bench_until(2 * per_trial).trials == 2
    whole = bench_until(3 * per_trial)
    assert (whole.is_partial, whole.trials) == (False, 3)


def test_ctrl_c_in_the_first_trial_keeps_the_prompts_that_both_answered():
    for after in (2, 3):
        report = bench_until(after)
        assert (report.is_partial, report.trials, report.prompts) == (True, 1, 1)
        assert sum(each.prompts for each in report.categories) == 1
    for after in (-2, 0, 1):
        with pytest.raises(KeyboardInterrupt):
            bench_until(after)


def test_ctrl_c_between_two_answers_is_handed_in():
    items = run_bench(InterruptedSession(100), PROMPTS, BenchConfig())
    for _ in range(4):
        next(items)
    with pytest.raises(StopIteration) as end:
        items.throw(KeyboardInterrupt())
    assert end.value.value.is_partial
