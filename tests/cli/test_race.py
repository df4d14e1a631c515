"""`dspark race` on a tiny pair."""

import json

import pytest

from dspark.errors import InputError


@pytest.fixture
def race(dspark, tiny_chat_dir, make_tiny_head):
    head = str(make_tiny_head(tiny_chat_dir))

    def run(*options, drafts=("--draft", head)):
        settings = ("--max-tokens", "16", "--device", "cpu", "--dtype", "float32")
        return dspark("race", "Hi", "--target", str(tiny_chat_dir), *drafts, *settings, *options)

    run.head = head
    return run


def test_plain_decoding_and_the_pair_write_the_same_text(race, dspark, tiny_chat_dir):
    outcome = race("--json", "--schedule", "full")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    plain, drafted = result["runners"]
    assert plain["name"] == "plain" and plain["stats"]["drafted"] == 0
    assert drafted["stats"]["drafted"] > 0 and result["is_identical"] is True
    settings = ("--max-tokens", "16", "--device", "cpu", "--dtype", "float32")
    for each in plain, drafted:
        assert each["tokens_per_second"] == pytest.approx(16 / each["seconds"])
        stats = each["stats"]
        assert stats["prefill_seconds"] + stats["decode_seconds"] == pytest.approx(each["seconds"])
    assert result["speedup"] == pytest.approx(plain["seconds"] / drafted["seconds"])
    alone = dspark("generate", "Hi", "--target", str(tiny_chat_dir), "--json", *settings)
    assert json.loads(alone.out)["token_ids"] == drafted["token_ids"] == plain["token_ids"]


def test_two_heads_race_and_a_line_each_tells_how_they_did(race):
    heads = ("--drafters", f"mine={race.head},lookup=lookup")
    outcome = race(drafts=heads)
    mine, lookup, verdict = outcome.out.splitlines()
    assert mine.startswith("mine: 16 tokens") and lookup.startswith("lookup: 16 tokens")
    assert verdict.endswith("the same text")


@pytest.mark.parametrize(
    ("drafts", "said"),
    [
        (("--draft", "none"), "has no head to race with"),
        (("--drafters", "a=lookup"), "takes two heads"),
        (("--drafters", "a=lookup,b=lookup", "--draft", "lookup"), "takes two heads"),
    ],
)
def test_a_race_needs_two(race, drafts, said):
    outcome = race(drafts=drafts)
    assert outcome.code == 2 and said in outcome.err


def test_the_demo_races_with_drafts_that_are_seen_unless_a_schedule_is_asked_for(
    dspark, monkeypatch
):
    schedules = []

    def opened(choice, heads, runtime, engine):
        schedules.append(engine.schedule.mode)
        raise InputError("enough", "")

    monkeypatch.setattr("dspark_cli.commands.race._runners", opened)
    for options in ([], ["--schedule", "auto"]):
        dspark("race", "demo", "Hi", *options)
    assert schedules == ["full", "auto"]
