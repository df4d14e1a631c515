"""`dspark generate` and `profile` on a gpt-oss in the published layout: our own forward, from the
command line to text. About 3 s."""

import json
from pathlib import Path

import pytest

from tests.automaton import write_byte_tokenizer
from tests.moe_toy import write_oss
from tests.text.test_thinking import HARMONY
from tests.text.test_tool_calls_harmony import TEMPLATE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("oss")
    write_oss(path, vocab_size=288)
    write_byte_tokenizer(path / "packed", special=HARMONY, chat_template=TEMPLATE)
    return path / "packed"


@pytest.fixture(autouse=True)
def home(folder, monkeypatch) -> None:
    """One for all tests: kernels are compiled once."""
    monkeypatch.setenv("DSPARK_HOME", str(folder.parent / "store"))


def test_drafts_and_short_memory_change_no_word(dspark, folder, monkeypatch) -> None:
    options = ("--max-tokens", "40", "--device", "cpu", "--json", "--schedule", "full")

    def generated(draft: str) -> dict[str, object]:
        answer = dspark("generate", "Hi", "--pair", str(folder), "--draft", draft, *options)
        assert answer.code == 0, answer.err
        found: dict[str, object] = json.loads(answer.out)
        return found

    plain, drafted = generated("none"), generated("lookup")
    assert plain["token_ids"] == drafted["token_ids"] and plain["dtype"] == "fp4"
    assert any(each["drafted"] and each["expert_reads"] for each in drafted["rounds"])
    monkeypatch.setattr("dspark.models.expert_store.slots_for", lambda *sizes: 4)
    short = generated("lookup")
    assert short["token_ids"] == plain["token_ids"]
    assert any(each["expert_far"] for each in short["rounds"])


def test_a_profile_prices_its_experts(dspark, folder) -> None:
    options = ("--draft", "lookup", "--requests", "1", "--device", "cpu", "--json")
    profile = dspark("profile", str(folder), *options)
    assert profile.code == 0, profile.err
    experts = json.loads(profile.out)["experts"]
    assert experts["expert_bytes"] == 3 * 64 * 32 * 17 // 32 and experts["near_seconds"] > 0
    assert experts["new_experts"][0] == pytest.approx(3 * 2, abs=0.01)
