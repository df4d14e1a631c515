"""Which backend runs on which device; the card is a stand-in."""

import platform
from types import SimpleNamespace

import pytest
import torch

from dspark_kernels import backend
from dspark_kernels.aot import inexact_instructions
from dspark_kernels.backend import choose_backend

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def no_memory(monkeypatch):
    """Answers are kept for a process; a test has machines of its own."""
    for kept in (backend._backend_of, backend.cuda_capability):
        kept.cache_clear()
    monkeypatch.setattr(backend, "HAS_TRITON", True)
    monkeypatch.delenv("DSPARK_KERNELS", raising=False)
    yield
    for kept in (backend._backend_of, backend.cuda_capability):
        kept.cache_clear()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch):
    """A card of this capability; what it was asked."""
    monkeypatch.setattr(backend, "triton", SimpleNamespace(__version__="3.6.0"))
    asked = []

    def make(*capability: int) -> list[torch.device]:
        def answer(device: torch.device) -> tuple[int, ...]:
            asked.append(device)
            return capability

        monkeypatch.setattr(torch.cuda, "get_device_capability", answer)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
        return asked

    return make


def test_a_device_is_asked_once(card):
    asked = card(9, 0)
    assert {choose_backend(CUDA).name for _ in range(20)} == {"triton"}
    assert asked == [CUDA]
    assert choose_backend(torch.device("cuda", 1)).name == "triton"
    assert len(asked) == 2


def test_the_switch_is_heeded_later_too(card, monkeypatch):
    card(9, 0)
    assert choose_backend(CUDA).name == "triton"
    monkeypatch.setenv("DSPARK_KERNELS", "torch")
    assert choose_backend(CUDA).name == "torch"


def test_an_old_card_runs_in_plain_torch(card):
    card(7, 5)
    assert choose_backend(CUDA) == ("torch", "compute capability 7.5 is below 8.0")


def test_rocm_runs_in_plain_torch(card, monkeypatch):
    """Which also reports a capability, but knows no maxnreg."""
    card(11, 0)
    monkeypatch.setattr(torch.version, "hip", "7.1")
    name, reason = choose_backend(CUDA)
    assert name == "torch" and "AMD" in reason


@pytest.mark.parametrize(
    ("system", "told"), [("Windows", "triton-windows"), ("Linux", "not installed")]
)
def test_without_triton_the_way_to_it_is_told(monkeypatch, system, told):
    monkeypatch.setattr(backend, "HAS_TRITON", False)
    monkeypatch.setattr(backend, "IS_WANTED", True)
    monkeypatch.setattr(platform, "system", lambda: system)
    name, reason = choose_backend(CUDA)
    assert name == "torch" and told in reason


def test_instructions_that_do_not_round_correctly_are_found() -> None:
    """Of those that a kernel with the CPU's bits must not have."""
    ptx = """
    fma.rn.f32 %r1, %r2, %r3, %r4;  div.rn.f32 %r1, %r2, %r3;  // .approx.f32 in words is none
    div.full.f32 %r5, %r6, %r7;  ex2.approx.ftz.f32 %r8, %r9;  mul.ftz.f32 %r1, %r1, %r1;
    """
    assert inexact_instructions(ptx) == ("div.full.f32", "ex2.approx.ftz.f32", "mul.ftz.f32")
