"""Runtime and current device on machines with several cards, which are stand-ins."""

import threading
from contextlib import contextmanager

import pytest
import torch

from dspark.config import RuntimeConfig
from dspark.engine import current_device, loop, runtime, scheduled_engine, session
from dspark.engine.current_device import each_on_device
from dspark.engine.runtime import resolve_runtime
from dspark.errors import InputError
from dspark.hub import memory_fit
from dspark.hub.memory_fit import room_for
from dspark.hub.memory_needed import Room
from tests.engine.pairs import decode, golden, request


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch):
    """Two cards of this capability."""

    def make(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(runtime, "cuda_capability", lambda device: capability)

    return make


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((12, 0), "bfloat16")]
)
def test_a_card_without_bfloat16_computes_in_float16(cards, capability, dtype):
    cards(*capability)
    resolved = resolve_runtime(RuntimeConfig())
    assert (resolved.device, resolved.dtype) == ("cuda", dtype)
    assert ("float16" in resolved.reason) == (dtype == "float16")
    assert resolve_runtime(RuntimeConfig(dtype="bfloat16")).dtype == "bfloat16"  # as asked


def test_an_amd_card_has_bfloat16_whatever_its_number(cards, monkeypatch):
    cards(7, 5)
    monkeypatch.setattr(torch.version, "hip", "7.1")
    assert resolve_runtime(RuntimeConfig()).dtype == "bfloat16"


def test_a_card_that_is_not_there_is_told(cards):
    cards(9, 0)
    assert resolve_runtime(RuntimeConfig("cuda:1")).device == "cuda:1"
    with pytest.raises(InputError, match="only 2 CUDA devices"):
        resolve_runtime(RuntimeConfig("cuda:2"))


def test_the_memory_of_a_certain_card_is_that_cards(monkeypatch):
    found = [Room("cuda", 80, 2), Room("cpu", 500, 4)]
    monkeypatch.setattr(memory_fit, "total_memory", {"cuda:1": 24}.__getitem__)
    assert room_for(RuntimeConfig("cuda:1"), found).total == 24
    assert room_for(RuntimeConfig("cuda"), found).total == 80
    assert room_for(RuntimeConfig("cpu"), found).total == 500


def test_every_pass_runs_with_its_targets_device_whatever_the_thread(monkeypatch):
    """A chat loads in one thread and answers in another, which begins with the first card."""
    current, seen = threading.local(), []

    @contextmanager
    def device(wanted):
        before = getattr(current, "device", None)
        current.device = wanted
        yield
        current.device = before

    for module in (current_device, loop, scheduled_engine, session):
        monkeypatch.setattr(module, "on_device", device)
    opened = golden("vanilla")
    target, drafter = opened.engine.target, opened.engine.drafter
    for own in (target.prefill, target.verify, drafter.propose, drafter.extend):

        def spy(*given, own=own, **named):
            seen.append(getattr(current, "device", None))
            return own(*given, **named)

        monkeypatch.setattr(own.__self__, own.__name__, spy)
    answer = threading.Thread(target=decode, args=(opened.engine, [request(max_tokens=8)]))
    answer.start()
    answer.join()
    opened.next_logits((1, 2, 3))
    assert len(seen) > 4 and set(seen) == {opened.engine.target.device}
    assert getattr(current, "device", None) is None


def test_between_the_steps_of_loading_the_caller_has_its_own_device(monkeypatch):
    held = []

    @contextmanager
    def device(wanted):
        held.append(wanted)
        yield
        held.pop()

    monkeypatch.setattr(current_device, "on_device", device)

    def work():
        for _ in range(2):
            yield list(held)

    inside = []
    for item in each_on_device(torch.device("cpu"), work()):
        inside.append(item)
        assert held == []
    assert inside == [[torch.device("cpu")]] * 2
