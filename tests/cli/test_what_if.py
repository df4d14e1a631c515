"""What a pair would need on another machine, and how this one refuses what it cannot hold."""

import json
from itertools import product

import pytest

from dspark.hub.memory_needed import Room


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DSPARK_HOME", str(tmp_path / "store"))


def test_another_machine_is_told_before_a_byte_is_fetched(dspark, tmp_path) -> None:
    told = json.loads(
        dspark("pull", "deepseek-v4-flash", "--what-if", "gpu=24@960,ram=256", "--json").out
    )
    assert told["estimate"] and [each["device"] for each in told["plans"]] == ["cpu", "gpu"]
    text = dspark("chat", "deepseek-v4-flash", "--what-if", "gpu=24@960,ram=256").out
    for each in ("147.2 GB", "read by every token", "estimate", "assumed", "not run on a GPU yet"):
        assert each in text
    assert not [*tmp_path.rglob("*.safetensors")]
    heading = " ".join(text.partition("\n  on the GPU")[2].split()).partition(" tokens a second")[0]
    assert "not run on a GPU yet" in heading and "estimate" in heading
    failed = dspark("chat", "demo", "--what-if", "gpu=24")
    assert failed.code == 2
    assert "needs the machine's memory" in failed.err


def test_a_model_too_large_is_refused_with_what_would_be_where(dspark, monkeypatch) -> None:
    monkeypatch.setattr(
        "dspark.hub.memory_fit.rooms", lambda: [Room("cpu", 32 * 10**9, 4, keeps_codes=True)]
    )
    monkeypatch.setenv("COLUMNS", "80")
    for command, name in product(("chat", "pull"), ("deepseek-v4-flash", "deepseek-v4-pro")):
        failed = dspark(command, name)
        assert failed.code == 1
        refusal, *plan = failed.err.splitlines()
        assert refusal.startswith(f"dspark: {name} needs") and "GB would be downloaded" in refusal
        assert f"{name} on a machine with 32.0 GB" in plan[0]
        assert any("on the SSD" in line for line in plan)
        assert any(line.startswith("  Routed experts are") for line in plan)
        ways = plan[plan.index("What you can do:") + 1 :]
        assert all(line.startswith(("  - ", "    ")) and len(line) <= 80 for line in ways)
        assert any(line.startswith(f"  - dspark chat {name} --what-if") for line in ways)
