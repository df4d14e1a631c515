"""`dspark generate`: the answer on stdout, all else on stderr, bad input in one line."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from dspark.config import ScheduleConfig
from dspark.errors import InputError


def give_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    stream = SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stream)


def test_stdout_is_the_answer_and_nothing_else(dspark, fake_session):
    outcome = dspark("generate", "Hi")
    assert outcome.code == 0
    assert outcome.out == "Hello world!\n"
    assert "4 tokens" in outcome.err and "τ 3.00" in outcome.err
    assert fake_session.is_closed


def test_a_pair_may_come_before_the_prompt(dspark, fake_session):
    alone, both = dspark("generate", "Hi"), dspark("generate", "demo", "Hi")
    assert both.code == 0 and both.out == alone.out
    assert dspark("generate", "demo", "Hi", "--pair", "demo").code == 2


def test_an_effort_goes_through_the_template(dspark, fake_session):
    assert dspark("generate", "Hi", "--effort", "max").code == 0
    assert fake_session.effort == "max"
    refused = dspark("generate", "Hi", "--effort", "max", "--raw")
    assert refused.code == 2 and "--effort needs the chat template" in refused.err
    assert dspark("generate", "Hi", "--effort", "most").code == 2


def test_json_has_the_promised_shape(dspark, fake_session):
    outcome = dspark("generate", "Hi", "--json")
    answer = json.loads(outcome.out)
    assert {"prompt_ids", "token_ids", "text", "thinking", "rounds", "stats"} <= set(answer)
    assert answer["prompt_ids"] == [1, ord("H"), ord("i"), 2]
    assert answer["token_ids"] == [10, 11, 12, 13]
    assert answer["text"] == "Hello world!"
    (only_round,) = answer["rounds"]
    assert (
        only_round["type"] == "round"
        and only_round.items()
        >= {
            **{"anchor": 10, "drafted": [11, 12, 99], "confidence": [0.9, 0.8, 0.25]},
            **{"verified": 3, "accepted": 2, "next": 13},
        }.items()
    )
    assert answer["stats"]["tau"] == 3.0
    assert answer["stats"]["decode_tokens_per_second"] == pytest.approx(30.0)
    assert answer["stats"]["finish_reason"] == "stop_token"


@pytest.mark.parametrize(
    ("options", "rule", "told"),
    [
        ((), "greedy", "per round\n"),
        (("--seed", "3"), "greedy", "per round\n"),
        (("--temperature", "0.7"), "rejection", "sampled without a seed\n"),
        (("--temperature", "0.7", "--seed", "0"), "coupling", "seed 0\n"),
    ],
)
def test_the_rule_by_which_drafts_are_kept_is_told(dspark, fake_session, options, rule, told):
    assert dspark("generate", "Hi", *options).err.endswith(told)
    answer = json.loads(dspark("generate", "Hi", "--json", *options).out)
    assert answer["acceptance"] == rule


def test_a_seed_has_up_to_64_bits(dspark, fake_session):
    for seed in (0, 2**63, 2**64 - 1):
        outcome = dspark("generate", "Hi", "--json", "--seed", str(seed))
        assert json.loads(outcome.out)["sampling"]["seed"] == seed
    for seed in ("18446744073709551616", "-1", "1e3"):
        outcome = dspark("generate", "Hi", "--seed", seed)
        assert outcome.code == 2 and "--seed" in outcome.err and not outcome.out


def test_json_has_all_that_is_needed_to_get_the_same_answer_again(dspark, fake_session):
    outcome = dspark(
        *("generate", "Hi", "--json", "--temperature", "0.7", "--top-k", "5", "--top-p", "0.9"),
        *("--seed", "4", "--max-tokens", "7", "--stop", "a", "--confidence-threshold", "0.3"),
    )
    answer = json.loads(outcome.out)
    files, *_ = fake_session.opened[0]
    assert answer["pair"] == "demo"
    assert (answer["target"], answer["head"]) == (str(files.target), str(files.draft))
    assert (answer["device"], answer["dtype"]) == ("cpu", "float32")
    assert answer["sampling"] == {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": 4}
    assert (answer["stop"]["max_tokens"], answer["stop"]["strings"]) == (7, ["a"])
    assert answer["schedule"] == {**{"mode": "threshold", "threshold": 0.3, "most_drafts": None}}


def test_token_ids_stand_in_for_text_without_a_tokenizer(dspark, fake_session):
    fake_session.tokenizer = None
    outcome = dspark("generate", "--token-ids", "1, 2,3")
    assert outcome.out == "10,11,12,13\n"
    assert fake_session.asked[0][0] == [1, 2, 3]
    assert json.loads(dspark("generate", "--token-ids", "1", "--json").out)["text"] is None


def test_raw_leaves_the_chat_template_out(dspark, fake_session):
    dspark("generate", "Hi", "--raw")
    assert fake_session.asked[0][0] == [ord("H"), ord("i")]


def test_a_model_without_a_chat_template_gets_the_bare_text(dspark, fake_session):
    fake_session.tokenizer.has_chat_template = False
    dspark("generate", "Hi")
    assert fake_session.asked[0][0] == [ord("H"), ord("i")]


def test_prompt_from_stdin_loses_only_its_last_line_break(dspark, fake_session, monkeypatch):
    give_stdin(monkeypatch, "über\n\n".encode())
    dspark("generate", "--raw")
    assert fake_session.asked[0][0] == [ord(character) for character in "über\n"]


def test_options_reach_the_settings(dspark, fake_session):
    dspark(
        *("generate", "Hi", "--temperature", "0.7", "--top-k", "5", "--top-p", "0.9"),
        *("--seed", "4", "--max-tokens", "7", "--stop", "a", "--stop", "b"),
        *("--confidence-threshold", "0.3", "--device", "cpu", "--dtype", "float32"),
    )
    _, sampling, stop, plain = fake_session.asked[0]
    _, runtime, engine = fake_session.opened[0]
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.7, 5, 0.9, 4)
    assert (stop.max_tokens, stop.strings) == (7, ("a", "b"))
    assert engine.schedule == ScheduleConfig(mode="threshold", threshold=0.3)
    assert (runtime.device, runtime.dtype) == ("cpu", "float32")
    assert plain is False


@pytest.mark.parametrize("mode", ["auto", "full"])
def test_schedule_reaches_the_engine(dspark, fake_session, mode):
    dspark("generate", "Hi", "--schedule", mode)
    assert fake_session.opened[0][2].schedule.mode == mode


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Hi", "--confidence-threshold", "0.5", "--schedule", "full"], "exclude each other"),
        (["Hi", "--token-ids", "1"], "exclude each other"),
        (["--token-ids", "1,x"], "whole numbers"),
        (["--token-ids", ""], "whole numbers"),
        (["--token-ids", "-1"], "whole numbers"),
        ([""], "empty"),
        ([" \n"], "empty"),
        (["a\udcff"], "not UTF-8"),
        (["Hi", "--temperature", "-1"], "--temperature"),
        (["Hi", "--temperature", "nan"], "--temperature"),
        (["Hi", "--temperature", "inf"], "finite"),
        (["Hi", "--top-p", "0"], "--top-p"),
        (["Hi", "--confidence-threshold", "2"], "--confidence-threshold"),
        (["Hi", "--max-tokens", "0"], "--max-tokens"),
        (["Hi", "--stop", ""], "--stop"),
        (["Hi", "--dtype", "int3"], "--dtype"),
        (["Hi", "--nonsense"], "--nonsense"),
        (["Hi", "there"], "there"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(dspark, fake_session, arguments, words):
    outcome = dspark("generate", *arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("dspark: ") and outcome.err.count("\n") == 1
    assert words in outcome.err
    assert fake_session.opened == []


@pytest.mark.parametrize(
    ("content", "words"), [(b"a\xff", "byte 1"), (b"", "empty"), (b"\n", "em")]
)
def test_bad_stdin_is_one_line_and_exit_code_2(dspark, fake_session, monkeypatch, content, words):
    give_stdin(monkeypatch, content)
    outcome = dspark("generate")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert words in outcome.err


def test_text_for_a_model_without_a_tokenizer_is_refused(dspark, fake_session):
    fake_session.tokenizer = None
    outcome = dspark("generate", "Hi")
    assert outcome.code == 2
    assert "--token-ids" in outcome.err
    assert fake_session.is_closed


@pytest.mark.parametrize(
    ("failure", "code"), [(InputError("the prompt is too long"), 2), (KeyboardInterrupt(), 130)]
)
def test_a_failure_half_way_ends_the_line_and_closes_the_session(
    dspark, fake_session, failure, code
):
    fake_session.failure = failure
    outcome = dspark("generate", "Hi")
    assert outcome.code == code
    assert outcome.out == "Hello\n"
    assert outcome.err.count("\n") == 1
    assert fake_session.is_closed


def test_json_prints_nothing_for_half_an_answer(dspark, fake_session):
    fake_session.failure = KeyboardInterrupt()
    assert dspark("generate", "Hi", "--json").out == ""
