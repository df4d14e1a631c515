"""The text of the library that runs experts in FP4."""

from dspark_kernels.cpu.clamped_swiglu_text import write_clamped_swiglu
from dspark_kernels.cpu.float_text import write_declarations
from dspark_kernels.cpu.int8_rows_text import write_int8_declarations, write_round_int8
from dspark_kernels.cpu.llvm_text import Text
from dspark_kernels.cpu.mxfp4_text import write_mxfp4

EXPORTS = ("mxfp4", "round_int8", "clamped_swiglu")


def experts_text(variant: str) -> str:
    text = Text()
    write_mxfp4(text, variant)
    write_round_int8(text)
    write_clamped_swiglu(text)
    write_declarations(text)
    write_int8_declarations(text)
    return str(text)
