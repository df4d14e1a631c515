"""The instructions that unpack 4-bit codes, carried out one by one: no interpreter knows them."""

import re
from itertools import product

import numpy as np
import pytest
import torch

from dspark_kernels.unpack_int4 import unpack_text

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def run_ptx(text: str, kind: str, registers: dict[str, int]) -> dict[str, int]:
    """By the PTX manual; a fused multiply-add is exact in float64 here, then rounded once."""
    held = dict(registers)
    for line in re.findall(r"[^;{}]+;", text):
        operation, operands = line.strip(" ;").split(" ", 1)
        if operation == ".reg":
            continue
        target, *rest = (each.strip() for each in operands.split(","))
        numbers = [held[each] if each in held else int(each) for each in rest]
        held[target] = OPERATIONS[operation.split(".")[0]](kind, *numbers)
    return held


def permute(kind: str, a: int, b: int, selector: int) -> int:
    octets = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")]
    chosen = [selector >> 4 * i & 15 for i in range(4)]
    assert all(each < 8 for each in chosen)  # the highest bit would repeat a sign
    return int.from_bytes(bytes(octets[each] for each in chosen), "little")


def any_function(kind: str, a: int, b: int, c: int, table: int) -> int:
    bits = ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1) for i in range(32))
    return sum((table >> each & 1) << i for i, each in enumerate(bits))


def multiply_add(kind: str, a: int, b: int, c: int) -> int:
    x, y, z = (halves(each, kind).double() for each in (a, b, c))
    return joined((x * y + z).to(DTYPES[kind]))


def halves(register: int, kind: str) -> torch.Tensor:
    octets = np.frombuffer(register.to_bytes(4, "little"), np.int16).copy()
    return torch.from_numpy(octets).view(DTYPES[kind])


def joined(pair: torch.Tensor) -> int:
    return int.from_bytes(pair.view(torch.int16).numpy().tobytes(), "little")


OPERATIONS = {
    "mov": lambda kind, a: a,
    "shr": lambda kind, a, count: a >> count,
    "prmt": permute,
    "lop3": any_function,
    "fma": multiply_add,
}


@pytest.mark.parametrize(("kind", "offset"), [("bf16", 128), ("f16", 1024)])
def test_every_code_and_zero(kind, offset):
    """Four bytes at once, whose zeros differ two by two at most."""
    text, dtype = unpack_text(kind), DTYPES[kind]
    for first, zero in product(range(0, 256, 4), range(16)):
        codes = [first, first + 1, first + 2, first + 3]
        zeros = [zero, 15 - zero, zero, zero]
        offsets = torch.tensor([-offset - each for each in zeros]).to(dtype)
        found = run_ptx(
            text,
            kind,
            {
                "$4": int.from_bytes(bytes(codes), "little"),
                "$5": joined(offsets[:2]),
                "$6": joined(offsets[2:]),
            },
        )
        low = torch.cat([halves(found["$0"], kind), halves(found["$1"], kind)]).tolist()
        high = torch.cat([halves(found["$2"], kind), halves(found["$3"], kind)]).tolist()
        assert low == [(code & 15) - z for code, z in zip(codes, zeros, strict=True)]
        assert high == [(code >> 4) - z for code, z in zip(codes, zeros, strict=True)]
