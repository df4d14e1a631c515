"""Who chooses the instructions, and how one says otherwise."""

import sys

import pytest

from dspark_kernels.cpu import processor, runtime
from dspark_kernels.cpu.processor import choose_cpu_backend, variants


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv("DSPARK_CPU", raising=False)
    monkeypatch.delenv("DSPARK_KERNELS", raising=False)


def test_each_variant_can_be_forced(monkeypatch):
    for name in variants():
        monkeypatch.setenv("DSPARK_CPU", name)
        chosen = choose_cpu_backend()
        assert chosen.variant is not None and chosen.variant.name == name
        assert f"DSPARK_CPU={name}" in chosen.reason


def test_without_a_word_the_first_is_taken():
    if variants():
        assert choose_cpu_backend().variant == next(iter(variants().values()))


class ServerFeatures(dict):
    """Of a processor with everything."""

    def __init__(self):
        names = (*processor.X86_BASE, "avx512vnni", "avx512bw", "avx512vl", "amx-tile", "amx-int8")
        super().__init__(dict.fromkeys(names, True))

    def flatten(self):
        return ",".join(f"+{name}" for name in self)


@pytest.mark.parametrize(
    ("platform", "answer", "first"),
    [("linux", 0, "amx"), ("linux", -1, "vnni512"), ("win32", 0, "vnni512")],
)
def test_tiles_are_for_those_whom_linux_permits_them(platform, answer, first, monkeypatch):
    """A processor may announce tiles and the system may keep them from us: then they fault."""
    binding = pytest.importorskip("llvmlite.binding")
    monkeypatch.setattr(binding, "get_host_cpu_features", ServerFeatures)
    monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(processor.sys, "platform", platform)
    monkeypatch.setattr(processor, "_ask_linux", lambda *_: answer)
    assert next(iter(processor.variants.__wrapped__())) == first


def test_what_the_processor_cannot_run_is_refused(monkeypatch):
    if not variants():
        pytest.skip("no kernels for this processor")
    monkeypatch.setenv("DSPARK_CPU", "altivec")
    with pytest.raises(ValueError, match=r"altivec.*generic can"):
        choose_cpu_backend()


def test_kernels_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("DSPARK_KERNELS", "torch")
    assert choose_cpu_backend().variant is None


def test_without_llvmlite_plain_torch_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    processor.variants.cache_clear()
    try:
        backend = choose_cpu_backend()
        assert backend.variant is None and "llvmlite" in backend.reason
    finally:
        processor.variants.cache_clear()


def test_what_cannot_be_built_gives_way_to_torch(monkeypatch):
    if not variants():
        pytest.skip("no kernels for this processor")

    def broken(*_):
        raise RuntimeError("no room for code")

    runtime._failure.cache_clear()
    monkeypatch.setattr(runtime, "runtime_of", broken)
    try:
        backend = runtime.usable_backend()
        assert backend.variant is None and "no room for code" in backend.reason
        assert runtime.current() is None
    finally:
        runtime._failure.cache_clear()
