"""The formats of stored weights in a common form: codes of groups of 32, and factors.

weight = factor · (code - offset) + least, where factor and least are half-precision numbers of each
group, or small whole numbers of it times half-precision ones of each 256 inputs (the K-quants).
"""

from typing import NamedTuple

SUPER = 8  # groups of a K-quant's block


class Format(NamedTuple):
    """`high_bits` are stored apart from the low four; `parts` of a group have a factor each."""

    low_bits: int  # 4 or 8
    high_bits: int
    offset: int
    has_least: bool
    is_super: bool
    parts: int
    block_bytes: int  # of a GGUF file

    @property
    def bits(self) -> int:
        return self.low_bits + self.high_bits

    @property
    def block(self) -> int:
        """Inputs per block of the file; the width must be a multiple of it."""
        return 32 * SUPER if self.is_super else 32


FORMATS = {
    "q4_0": Format(4, 0, 8, False, False, 1, 18),
    "q4_1": Format(4, 0, 0, True, False, 1, 20),
    "q5_0": Format(4, 1, 16, False, False, 1, 22),
    "q5_1": Format(4, 1, 0, True, False, 1, 24),
    "q8_0": Format(8, 0, 128, False, False, 1, 34),
    "q4_k": Format(4, 0, 0, True, True, 1, 144),
    "q5_k": Format(4, 1, 0, True, True, 1, 176),
    "q6_k": Format(4, 2, 32, False, True, 2, 210),
}
