"""LLVM's text to functions in memory, compiled once and kept as object code in a folder.

An object's name holds everything it depends on; one that is damaged is compiled again.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dspark_kernels.cpu.processor import Variant

DIGEST_BYTES = 32
_jit: dict[Variant, Any] = {}


class Library:
    """Functions by name; they live as long as this does."""

    def __init__(self, tracker: Any, names: Sequence[str]) -> None:
        self._tracker = tracker
        self.addresses: dict[str, int] = {name: int(tracker[name]) for name in names}


def load_library(
    name: str,
    write: Callable[[], str],
    exports: Sequence[str],
    variant: Variant,
    cache_folder: Path | None,
) -> Library:
    """`write` gives the text; `exports` are made callable. Without a folder nothing is kept."""
    import llvmlite.binding as llvm

    text = write()
    stored = cache_folder and _place(name, text, variant, cache_folder)
    code = _read(stored) if stored else None
    if code is None:
        code = _compile(text, variant)
        if stored:
            _write(stored, code)
    builder = llvm.JITLibraryBuilder().add_object_img(code)
    for each in exports:
        builder.export_symbol(each)
    return Library(builder.link(_compiler(variant), f"{name}-{os.urandom(6).hex()}"), exports)


def is_kept(name: str, text: str, variant: Variant, cache_folder: Path) -> bool:
    """Whether load_library finds it compiled, as far as the name of a file tells."""
    return _place(name, text, variant, cache_folder).is_file()


def _place(name: str, text: str, variant: Variant, cache_folder: Path) -> Path:
    return cache_folder / f"{name}-{_key(text, variant)}.o"


def emit_assembly(text: str, variant: Variant, triple: str | None = None) -> str:
    """For looking at, also for another processor than this one."""
    machine, module = _optimised(text, variant, triple)
    assembly: str = machine.emit_assembly(module)
    return assembly


def _key(text: str, variant: Variant) -> str:
    import llvmlite

    facts = "\n".join([llvmlite.__version__, variant.cpu, variant.features, text])
    return hashlib.sha256(facts.encode()).hexdigest()[:24]


def _compile(text: str, variant: Variant) -> bytes:
    machine, module = _optimised(text, variant, None)
    code: bytes = machine.emit_object(module)
    return code


def _optimised(text: str, variant: Variant, triple: str | None) -> tuple[Any, Any]:
    import llvmlite.binding as llvm

    machine = _machine(variant, triple)
    module = llvm.parse_assembly(text)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return machine, module


def _machine(variant: Variant, triple: str | None) -> Any:
    import llvmlite.binding as llvm

    if triple is None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_triple(_own_triple())
    else:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        target = llvm.Target.from_triple(triple)
    return target.create_target_machine(
        cpu=variant.cpu, features=variant.features, opt=3, reloc="pic", codemodel="small"
    )


def _own_triple() -> str:
    """Windows' own object format needs symbols of Microsoft's runtime."""
    import llvmlite.binding as llvm

    triple: str = llvm.get_process_triple()
    return f"{triple}-elf" if sys.platform == "win32" else triple


def _compiler(variant: Variant) -> Any:
    import llvmlite.binding as llvm

    if variant not in _jit:
        _jit[variant] = llvm.create_lljit_compiler(_machine(variant, None))
    return _jit[variant]


def _read(path: Path) -> bytes | None:
    """None if there is no complete object."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    code = content[DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == content[:DIGEST_BYTES] else None


def _write(path: Path, code: bytes) -> None:
    """Code that cannot be stored is compiled again next time."""
    beside = path.with_suffix(f".{os.getpid()}-{os.urandom(4).hex()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(hashlib.sha256(code).digest() + code)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
