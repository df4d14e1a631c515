"""Four bytes of 4-bit codes to eight numbers in two instructions and a half for two of them.

A code put into the lower bits of a float whose last bit counts ones is that float plus the code:
128 in bf16, 1024 in fp16. Two codes are in two halves of a register, and one fused multiply-add
takes the offset and the zero off both. All of this is exact.
"""

from dspark_kernels.backend import jit, tl

ONES = {"bf16": 0x3F803F80, "f16": 0x3C003C00}  # 1.0 twice
OFFSETS = {"bf16": 0x43004300, "f16": 0x64006400}  # 128.0, or 1024.0, twice


def unpack_text(kind: str) -> str:
    """PTX of four bytes $4 and offsets $5, $6, two each: lower codes to $0, $1, upper ones to
    $2, $3."""
    lines = [".reg .b32 pair, upper, one;", f"mov.b32 one, {ONES[kind]};"]
    for low, high, selector in (("$0", "$2", 0x4140), ("$1", "$3", 0x4342)):
        lines += [
            f"prmt.b32 pair, $4, 0, {selector};",  # a byte in the lowest bits of each half
            "shr.u32 upper, pair, 4;",
            f"lop3.b32 {low}, pair, {0x000F000F}, {OFFSETS[kind]}, {0xEA};",  # (a & b) | c
            f"lop3.b32 {high}, upper, {0x000F000F}, {OFFSETS[kind]}, {0xEA};",
        ]
    for out, offset in (("$0", "$5"), ("$1", "$6"), ("$2", "$5"), ("$3", "$6")):
        lines.append(f"fma.rn.{kind}x2 {out}, {out}, one, {offset};")
    return "{ " + " ".join(lines) + " }"


BF16_TEXT = tl.constexpr(unpack_text("bf16"))
FP16_TEXT = tl.constexpr(unpack_text("f16"))
OPERANDS = tl.constexpr("=&r,=&r,=&r,=&r,r,r,r")


@jit
def unpacked(packed: tl.tensor, zero: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """packed [K / 2, N] bytes, zero [1, N] -> lower and upper codes less their zeros, each
    [K / 2, N] bf16 or fp16."""
    zero = zero.to(tl.float32)
    if dtype == tl.bfloat16:
        both = tl.inline_asm_elementwise(
            BF16_TEXT,
            OPERANDS,
            [packed, (-128.0 - zero).to(dtype)],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
    else:
        both = tl.inline_asm_elementwise(
            FP16_TEXT,
            OPERANDS,
            [packed, (-1024.0 - zero).to(dtype)],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=4,
        )
    return both
