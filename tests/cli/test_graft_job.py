"""The options of `dspark graft` reach the settings of a training, each its own field."""

from pathlib import Path
from typing import Any

import pytest
import typer

from dspark.config import GraftConfig, graft_config
from dspark.errors import InputError
from dspark_cli.app import app
from dspark_cli.graft_job import FIELDS, graft_settings, parse_taps

GROUP: Any = typer.main.get_command(app)


def params_of(*arguments: str) -> dict[str, Any]:
    parent = GROUP.make_context("dspark", ["graft", *arguments])
    command = GROUP.commands["graft"]
    with command.make_context("graft", list(arguments), parent=parent) as context:
        return dict(context.params)


@pytest.mark.parametrize("algorithm", ["dspark", "dflash", "dflash2", "domino", "eagle3", "mtp"])
def test_without_options_it_is_the_algorithms_default(algorithm):
    assert graft_settings(params_of("--algo", algorithm)) == graft_config(algorithm)


def test_a_loss_sets_the_weights_of_its_terms_and_options_go_before_it():
    for algorithm in ("dspark", "dflash"):
        shaped = graft_settings(params_of("--algo", algorithm, "--loss", "nla"))
        assert (shaped.cross_entropy_weight, shaped.l1_weight, shaped.nla_weight) == (0.1, 0.0, 0.9)
    mixed = graft_settings(params_of("--loss", "lk", "--distillation", "0.5"))
    assert (mixed.lk_weight, mixed.distillation_weight) == (0.9, 0.5)


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ([], 0.1),
        (["--algo", "domino"], 1.0),
        (["--algo", "dflash2", "--markov-share", "0.3"], 0.3),
    ],
)
def test_tables_that_begin_with_bigrams_learn_at_a_tenth_of_the_rate(options, share):
    assert graft_settings(params_of(*options)).markov_learning_share == share


@pytest.mark.parametrize(
    ("option", "value", "field", "expected"),
    [
        ("--steps", "7", "steps", 7),
        ("--batch-size", "3", "batch_size", 3),
        ("--accumulate", "2", "accumulate", 2),
        ("--anchors", "5", "anchors", 5),
        ("--length", "99", "length", 99),
        ("--lr", "0.5", "learning_rate", 0.5),
        ("--distillation", "0.25", "distillation_weight", 0.25),
        ("--markov-share", "0.5", "markov_learning_share", 0.5),
        ("--position-decay", "2", "position_decay", 2.0),
        ("--position-weights", "dpace", "position_weights", "dpace"),
        ("--optimizer", "muon", "optimizer", "muon"),
        ("--average", "0.99", "average", 0.99),
        ("--block-size", "6", "block_size", 6),
        ("--layers", "2", "num_layers", 2),
        ("--intermediate-size", "64", "intermediate_size", 64),
        ("--kv-heads", "2", "num_kv_heads", 2),
        ("--taps", "1,2", "taps", (1, 2)),
        ("--mask-token", "4", "mask_token_id", 4),
        ("--markov-type", "rnn", "markov_type", "rnn"),
        ("--markov-rank", "8", "markov_rank", 8),
        ("--init", "random", "init", "random"),
        ("--loss-vocabulary", "100", "loss_vocabulary", 100),
        ("--draft-vocabulary", "200", "draft_vocabulary", 200),
        ("--precision", "bfloat16", "precision", "bfloat16"),
        ("--seed", "3", "seed", 3),
        ("--max-answer-tokens", "9", "max_answer_tokens", 9),
        ("--answer-temperature", "0.1", "answer_temperature", 0.1),
        ("--answers-at-once", "4", "answers_at_once", 4),
        ("--eval-prompts", "5", "eval_prompts", 5),
        ("--checkpoint-every", "6", "checkpoint_every", 6),
        ("--tap-memory", "0.5", "tap_memory_gib", 0.5),
    ],
)
def test_each_option_sets_its_field_and_no_other(option, value, field, expected):
    settings = graft_settings(params_of(option, value))
    differing = {
        name
        for name in GraftConfig.__slots__
        if getattr(settings, name) != getattr(GraftConfig(), name)
    }
    assert (differing, getattr(settings, field)) == ({field}, expected)


def test_every_renamed_option_is_an_option():
    assert set(FIELDS) <= set(params_of())
    assert set(FIELDS.values()) <= set(GraftConfig.__slots__)


def test_paths_are_paths():
    params = params_of("--out", "a", "--data", "b", "--tap-cache", "c")
    assert (params["out"], params["data"], params["tap_cache"]) == (Path("a"), Path("b"), Path("c"))


def test_taps_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="--taps 1,x is not a list of layers"):
        parse_taps("1,x")
