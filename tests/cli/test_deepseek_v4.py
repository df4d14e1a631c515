"""`dspark generate` and `chat` on a DeepSeek-V4 in the published layout: our own forward, from the
command line to text, on a toy with its own head. About 6 s."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from dspark.targets.deepseek_v4_native import load_deepseek_v4
from tests.deepseek_v4_toy import write
from tests.text.test_deepseek_v4_template import write_tokenizer

NUM_TOKENS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v4")
    write_tokenizer(folder)
    write(folder, vocab_size=288)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DSPARK_HOME", str(tmp_path / "store"))


@torch.inference_mode()
def written_by_hand(folder: Path, prompt: list[int], rounds: bool) -> list[int]:
    """Greedy, one token after the other."""
    target = load_deepseek_v4(folder, tap_layers=(), rounds=rounds)
    slot = target.open()
    ids = [int(target.prefill(slot, torch.tensor(prompt)).logits[0].argmax())]
    while len(ids) < NUM_TOKENS and ids[-1] not in target.spec.stop_token_ids:
        ids.append(int(target.verify([slot], [torch.tensor(ids[-1:])]).logits[0].argmax()))
        target.commit([slot], [1])
    return ids


def test_generate_writes_with_our_own_forward(dspark, folder) -> None:
    told = {}
    for draft in ("head", "none"):
        for dtype in ("auto", "float32"):
            options = [
                "--max-tokens",
                str(NUM_TOKENS),
                "--dtype",
                dtype,
                "--device",
                "cpu",
                "--json",
            ]
            options += ["--draft", "none"] if draft == "none" else ["--schedule", "full"]
            answer = dspark("generate", "Hi", "--pair", str(folder), *options)
            assert answer.code == 0, answer.err
            told[draft, dtype] = json.loads(answer.out)
    prompt = told["head", "auto"]["prompt_ids"]
    for (draft, dtype), answer in told.items():
        rounds = dtype == "auto"
        assert answer["token_ids"] == written_by_hand(folder, prompt, rounds), (draft, dtype)
    drafted = told["head", "auto"]["rounds"]
    assert any(each["drafted"] for each in drafted)
    assert all(each["expert_reads"] > 0 and each["expert_far"] == 0 for each in drafted)


def test_a_chat_answers(dspark, folder, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi\nAnd?\n")))
    answer = dspark("chat", str(folder), "--plain", "--max-tokens", "6", "--device", "cpu")
    assert answer.code == 0, answer.err
    assert answer.out.strip()


def test_the_schedule_prices_its_experts(dspark, folder) -> None:
    """A first start measures the table of costs, experts included."""
    options = ("--max-tokens", "8", "--device", "cpu", "--json", "--schedule", "auto")
    answer = dspark("generate", "Hi", "--pair", str(folder), *options)
    assert answer.code == 0, answer.err
    profile = dspark("profile", str(folder), "--requests", "1", "--device", "cpu", "--json")
    assert profile.code == 0, profile.err
    experts = json.loads(profile.out)["experts"]
    assert experts["expert_bytes"] == 3 * 64 * 32 * 17 // 32 and experts["near_seconds"] > 0
    assert experts["new_experts"][0] == pytest.approx(4 * 2, abs=0.01)
    assert all(0 <= each <= 8 for each in experts["new_experts"])


@pytest.mark.parametrize("draft", [(), ("--draft", "none")], ids=["own head", "no head"])
def test_its_successor_is_refused_by_name(dspark, folder, tmp_path, draft) -> None:
    successor = tmp_path / "v41"
    shutil.copytree(folder, successor)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "deepseek_v41"}
    (successor / "config.json").write_text(json.dumps(config))
    answer = dspark("generate", "Hi", "--pair", str(successor), *draft)
    assert answer.code == 1 and answer.out == ""
    line = answer.err.splitlines()[-1]
    assert "DeepSeek-V4.1" in line and "n-gram memory" in line and "deepseek-v4-flash" in line


def test_memory_that_is_short_changes_no_word(dspark, folder, monkeypatch) -> None:
    """With slots for a few experts, the rest from the files; and where even those cannot be had."""
    options = ("--pair", str(folder), "--max-tokens", "12", "--device", "cpu", "--json")
    whole = json.loads(dspark("generate", "Hi", *options).out)
    monkeypatch.setattr("dspark.models.expert_store.slots_for", lambda *sizes: 5)
    short = json.loads(dspark("generate", "Hi", *options).out)
    assert short["token_ids"] == whole["token_ids"]
    assert any(each["expert_far"] for each in short["rounds"])

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr("dspark.models.expert_store.ExpertStore", full)
    without = json.loads(dspark("generate", "Hi", *options).out)
    assert without["token_ids"] == whole["token_ids"]


def test_a_shard_that_is_gone_is_one_line(dspark, folder, tmp_path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    shard = sorted(broken.glob("*.safetensors"))[0]
    for damage in (lambda: shard.write_bytes(shard.read_bytes()[:-7]), shard.unlink):
        damage()
        answer = dspark("generate", "Hi", "--pair", str(broken), "--device", "cpu")
        assert answer.code == 1 and answer.out == ""
        assert shard.name in answer.err.splitlines()[-1]
