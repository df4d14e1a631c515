"""What an evaluation counts."""

from dspark.graft.judge.acceptance import Evaluation, summarise


def test_a_position_is_judged_by_the_rounds_that_reached_it() -> None:
    evaluation = Evaluation(prompts=2, rounds=8, tau=1.875, accepted=(4, 3, 0))
    assert evaluation.acceptance_by_position == (0.5, 0.75, 0.0)


def test_without_a_round_there_is_nothing_to_judge() -> None:
    evaluation = summarise([], 2)
    assert (evaluation.rounds, evaluation.tau) == (0, 0.0)
    assert evaluation.acceptance_by_position == ()
