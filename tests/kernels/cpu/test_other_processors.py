"""The text compiles for processors that are not here, to code that calls nothing outside itself."""

import re

import pytest

from dspark_kernels.cpu import driver_text, matrix_text, rows_text
from dspark_kernels.cpu.deepseek_v4.operation_texts import deepseek_v4_text
from dspark_kernels.cpu.moe.operation_texts import moe_text
from dspark_kernels.cpu.object_code import emit_assembly
from dspark_kernels.cpu.processor import BASE_FLAGS, Variant, variants

ARM = ("aarch64-unknown-linux-gnu", "neoverse-n1", "+dotprod")
APPLE = ("arm64-apple-macosx12.0", "apple-m1", "")
OLD_ARM = ("aarch64-unknown-linux-gnu", "cortex-a72", "")
LINUX = ("x86_64-unknown-linux-gnu", "haswell", BASE_FLAGS)
WINDOWS = ("x86_64-pc-windows-msvc-elf", "haswell", BASE_FLAGS)
SERVER = ("x86_64-unknown-linux-gnu", "sapphirerapids", "+amx-int8")


def texts(variant: str, is_x86: bool) -> list[str]:
    matrices = [matrix_text.matrix_text(kind, variant) for kind in ("q4_1", "q8_0")]
    rows = [rows_text.rows_text(), rows_text.attend_text(64, 3), rows_text.embed_text("q5_k")]
    rows.append(rows_text.attend_text(64, 8, floats=True))
    layers = [deepseek_v4_text(), moe_text(variant)]
    return [*matrices, *rows, *layers, driver_text.driver_text(is_x86)]


@pytest.mark.parametrize(
    ("machine", "variant", "instruction"),
    [
        (ARM, "neon", "sdot"),
        (APPLE, "neon", "sdot"),
        (OLD_ARM, "generic", "fmla"),
        (LINUX, "generic", "vfmadd"),
        (WINDOWS, "avx2", "vpmaddubsw"),
        (SERVER, "amx", "tdpbssd"),
    ],
)
def test_nothing_outside_is_called(machine, variant, instruction):
    if not variants():
        pytest.skip("LLVM is not installed")
    triple, cpu, features = machine
    found = ""
    for text in texts(variant, triple.startswith("x86")):
        assembly = emit_assembly(text, Variant(variant, cpu, features), triple)
        own = set(re.findall(r"^_?([\w.]+):", assembly, re.M))
        called = set(re.findall(r"^\s+(?:bl|b|callq?|jmp)\s+_?([A-Za-z]\w*)$", assembly, re.M))
        assert called <= own
        assert not re.search(r"\b(__chkstk|_fltused|memcpy|memset|fmaf|__extendhfsf2)\b", assembly)
        found += assembly
    assert instruction in found
