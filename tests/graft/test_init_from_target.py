"""Where training starts from."""

from collections.abc import Callable
from dataclasses import replace

import torch

from dspark.config import GraftConfig
from dspark.graft.data.answer_file import Answer
from dspark.graft.head.bigram_init import Bigrams
from dspark.graft.head.init_from_target import start_from_target
from dspark.graft.target.frozen_target import FrozenTarget
from dspark.graft.train.trainer import Trainer

MakeTrainer = Callable[..., Trainer]


def _bigrams(target: FrozenTarget, answers: list[Answer]) -> Bigrams:
    bigrams = Bigrams(target)
    for answer in answers:
        bigrams.add(answer)
    return bigrams


def test_a_full_rank_table_gives_the_mean_hidden_state_after_each_token(
    target: FrozenTarget,
    answers: list[Answer],
    make_trainer: MakeTrainer,
    small_config: GraftConfig,
) -> None:
    often = answers * 2000  # so that the prior for rare tokens does not matter
    bigrams = _bigrams(target, answers)
    bigrams._counts *= len(often) / len(answers)
    bigrams._sums *= len(often) / len(answers)
    markov = make_trainer(replace(small_config, markov_rank=60)).head.markov_head
    assert markov is not None
    bigrams.fill(markov)
    after: dict[int, list[torch.Tensor]] = {}
    for answer in answers:
        hidden = target.view(answer.token_ids).hidden
        for position in range(len(answer.prompt_ids) - 1, len(answer.token_ids)):
            after.setdefault(answer.token_ids[position], []).append(hidden[position])
    for token, states in after.items():
        expected = torch.stack(states).mean(dim=0) @ target.output_head.T
        logits = markov.markov_w2(markov.embed(torch.tensor(token)))
        torch.testing.assert_close(logits, expected, rtol=0.02, atol=0.02)


def test_starting_from_the_target_is_better_than_from_nothing(
    target: FrozenTarget, answers: list[Answer], make_trainer: MakeTrainer
) -> None:
    from_nothing, from_target = make_trainer(), make_trainer()
    start_from_target(
        from_target.head, target, _bigrams(target, answers[:21]), torch.Generator().manual_seed(0)
    )
    nothing, start = (t.validate(answers[21:]) for t in (from_nothing, from_target))
    assert start.tau > nothing.tau
    assert start.cross_entropy < nothing.cross_entropy


def test_more_heads_of_keys_begin_as_the_same_function(
    target: FrozenTarget,
    answers: list[Answer],
    make_trainer: MakeTrainer,
    small_config: GraftConfig,
) -> None:
    num_heads = target.config.num_attention_heads
    assert target.config.num_key_value_heads < num_heads
    reports = []
    for num_kv_heads in (None, num_heads):
        config = replace(small_config, num_kv_heads=num_kv_heads, intermediate_size=None)
        trainer = make_trainer(config)
        bigrams = _bigrams(target, answers[:21])
        start_from_target(trainer.head, target, bigrams, torch.Generator().manual_seed(0))
        reports.append(trainer.validate(answers[21:]))
    grouped, whole = reports
    torch.testing.assert_close(whole.tau, grouped.tau, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.cross_entropy, grouped.cross_entropy, rtol=1e-5, atol=1e-5)


def test_a_wider_mlp_begins_as_the_same_function(
    target: FrozenTarget,
    answers: list[Answer],
    make_trainer: MakeTrainer,
    small_config: GraftConfig,
) -> None:
    reports = []
    for width in (None, 3 * int(target.config.intermediate_size)):
        trainer = make_trainer(replace(small_config, intermediate_size=width))
        bigrams = _bigrams(target, answers[:21])
        start_from_target(trainer.head, target, bigrams, torch.Generator().manual_seed(0))
        reports.append(trainer.validate(answers[21:]))
    narrow, wide = reports
    torch.testing.assert_close(wide.tau, narrow.tau, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(wide.cross_entropy, narrow.cross_entropy, rtol=1e-5, atol=1e-5)
