"""Sums of products of codes, four to a lane, in the instructions of each variant."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from dspark_kernels.cpu.llvm_text import Text, constant, vector


@dataclass
class Sums:
    """Running sums: int32 lanes, and a variant's additional state."""

    whole: list[str] = field(default_factory=list)
    short: str | None = None  # int16 lanes that are not widened yet
    num_short: int = 0


class Dot(Protocol):
    """`lanes` of int32 each hold the sum of one output; `is_signed`: 8-bit weights count as signed
    here, so that the sum need not handle their offset of 128."""

    @property
    def lanes(self) -> int: ...

    @property
    def is_signed(self) -> bool: ...

    @property
    def declarations(self) -> tuple[str, ...]: ...

    def weights(self, text: Text, codes: str) -> str:
        """<4 lanes x i8> of unsigned codes -> the operand of `add`."""
        ...

    def add(self, text: Text, sums: Sums, weights: str, x: str) -> None:
        """`x` <lanes x i32>: the same four signed codes of a row in every lane."""
        ...

    def total(self, text: Text, sums: Sums) -> str: ...


def make_dot(variant: str, bits: int) -> Dot:
    if variant in ("amx", "vnni512", "avxvnni"):
        return Vnni(8 if variant == "avxvnni" else 16)
    others: dict[str, Callable[[int], Dot]] = {"avx2": Avx2, "neon": Neon, "generic": Plain}
    return others[variant](bits)


def _sum(text: Text, lanes: int, terms: list[str]) -> str:
    while len(terms) > 1:
        terms = [text.set(f"add {vector('i32', lanes)} {terms[0]}, {terms[1]}"), *terms[2:]]
    return terms[0] if terms else constant("i32", lanes, 0)


def _bytes_of(text: Text, words: str, lanes: int) -> str:
    return text.set(f"bitcast {vector('i32', lanes)} {words} to {vector('i8', 4 * lanes)}")


class Vnni:
    """Unsigned times signed, four products a lane, by one instruction that does not saturate."""

    is_signed = False

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._kind = vector("i32", lanes)
        self._name = f"@llvm.x86.avx512.vpdpbusd.{32 * lanes}"
        operands = ", ".join([self._kind] * 3)  # newer LLVMs take bytes, and these too
        self.declarations = (f"declare {self._kind} {self._name}({operands})",)

    def weights(self, text: Text, codes: str) -> str:
        return text.set(f"bitcast {vector('i8', 4 * self.lanes)} {codes} to {self._kind}")

    def add(self, text: Text, sums: Sums, weights: str, x: str) -> None:
        kind, before = self._kind, _sum(text, self.lanes, sums.whole)
        # one chain a row: the next group begins before this one ends, which hides the latency
        sums.whole = [
            text.set(f"call {kind} {self._name}({kind} {before}, {kind} {weights}, {kind} {x})")
        ]

    def total(self, text: Text, sums: Sums) -> str:
        return _sum(text, self.lanes, sums.whole)


class Avx2:
    """Pairs of products in int16, added up there as long as they cannot overflow."""

    lanes = 8

    def __init__(self, bits: int) -> None:
        self.is_signed = bits == 8
        # an int16 holds 32767; a pair of products has at most 2 · 127 · the largest code
        self._most = 1 if bits == 8 else 32767 // (2 * 127 * (2**bits - 1))
        self.declarations = (
            "declare <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8>, <32 x i8>)",
            "declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)",
            "declare <32 x i8> @llvm.x86.avx2.psign.b(<32 x i8>, <32 x i8>)",
            "declare <32 x i8> @llvm.abs.v32i8(<32 x i8>, i1)",
        )

    def weights(self, text: Text, codes: str) -> str:
        if not self.is_signed:
            return codes
        return text.set(f"xor <32 x i8> {codes}, {constant('i8', 32, -128)}")

    def add(self, text: Text, sums: Sums, weights: str, x: str) -> None:
        codes = _bytes_of(text, x, 8)
        if self.is_signed:  # |w| up to 128 times the row's code with the sign of w
            codes = text.set(
                f"call <32 x i8> @llvm.x86.avx2.psign.b(<32 x i8> {codes}, <32 x i8> {weights})"
            )
            weights = text.set(f"call <32 x i8> @llvm.abs.v32i8(<32 x i8> {weights}, i1 false)")
        pairs = text.set(
            f"call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> {weights}, <32 x i8> {codes})"
        )
        if sums.short is not None:
            pairs = text.set(f"add <16 x i16> {sums.short}, {pairs}")
        sums.short, sums.num_short = pairs, sums.num_short + 1
        if sums.num_short == self._most:
            self._widen(text, sums)

    def total(self, text: Text, sums: Sums) -> str:
        self._widen(text, sums)
        return _sum(text, 8, sums.whole)

    def _widen(self, text: Text, sums: Sums) -> None:
        if sums.short is None:
            return
        ones = constant("i16", 16, 1)
        wide = text.set(
            f"call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> {sums.short}, <16 x i16> {ones})"
        )
        sums.whole = [_sum(text, 8, [*sums.whole, wide])]
        sums.short, sums.num_short = None, 0


class Neon:
    """Signed times signed, four products a lane; codes below 128 are the same either way."""

    lanes = 4
    declarations = (
        "declare <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)",
    )

    def __init__(self, bits: int) -> None:
        self.is_signed = bits == 8

    def weights(self, text: Text, codes: str) -> str:
        if not self.is_signed:
            return codes
        return text.set(f"xor <16 x i8> {codes}, {constant('i8', 16, -128)}")

    def add(self, text: Text, sums: Sums, weights: str, x: str) -> None:
        before = _sum(text, 4, sums.whole)
        codes = _bytes_of(text, x, 4)
        sums.whole = [
            text.set(
                "call <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8"
                f"(<4 x i32> {before}, <16 x i8> {weights}, <16 x i8> {codes})"
            )
        ]

    def total(self, text: Text, sums: Sums) -> str:
        return _sum(text, 4, sums.whole)


class Plain:
    """For every processor: products of bytes in int16, which hold 127 · 255, then sums."""

    lanes = 16
    is_signed = False
    declarations = ()

    def __init__(self, bits: int) -> None:
        pass

    def weights(self, text: Text, codes: str) -> str:
        return text.set(f"bitcast <64 x i8> {codes} to <32 x i16>")

    def add(self, text: Text, sums: Sums, weights: str, x: str) -> None:
        codes = text.set(f"bitcast <16 x i32> {x} to <32 x i16>")
        eight = constant("i16", 32, 8)
        for is_upper in (False, True):
            if is_upper:
                weight = text.set(f"lshr <32 x i16> {weights}, {eight}")
                code = text.set(f"ashr <32 x i16> {codes}, {eight}")
            else:
                weight = text.set(f"and <32 x i16> {weights}, {constant('i16', 32, 255)}")
                moved = text.set(f"shl <32 x i16> {codes}, {eight}")
                code = text.set(f"ashr <32 x i16> {moved}, {eight}")
            product = text.set(f"mul <32 x i16> {weight}, {code}")
            pairs = text.set(f"bitcast <32 x i16> {product} to <16 x i32>")
            sixteen = constant("i32", 16, 16)
            upper = text.set(f"ashr <16 x i32> {pairs}, {sixteen}")
            lower = text.set(f"shl <16 x i32> {pairs}, {sixteen}")
            lower = text.set(f"ashr <16 x i32> {lower}, {sixteen}")
            sums.whole = [_sum(text, 16, [*sums.whole, upper, lower])]

    def total(self, text: Text, sums: Sums) -> str:
        return _sum(text, 16, sums.whole)
