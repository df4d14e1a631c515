"""SwiGLU of clamped numbers and rounding to 8 bits in LLVM's text."""

from dspark_kernels.cpu.float_text import FLOATS, LANES, numbers, write_exp
from dspark_kernels.cpu.int8_rows import GROUP, RECORD
from dspark_kernels.cpu.int8_rows_text import round_group_int8
from dspark_kernels.cpu.llvm_text import Loop, Text


def write_clamped_swiglu(text: Text) -> None:
    """Words: gate and up [N, 2 K], out, groups, the bits of the limit. A unit is a group of a
    row."""
    text.raw("define void @clamped_swiglu(ptr %own, ptr %step, i64 %first, i64 %last) {")
    source, out = text.argument("%own", 0, "ptr"), text.argument("%own", 1, "ptr")
    groups, limit_bits = text.argument("%own", 2), text.argument("%own", 3)
    limit = text.set(f"bitcast i32 {text.set(f'trunc i64 {limit_bits} to i32')} to float")
    high = text.splat("float", LANES, limit)
    low = text.set(f"fneg {FLOATS} {high}")
    half = text.set(f"mul i64 {groups}, {4 * GROUP}")
    loop = Loop(text, "%first", "%last")
    row = text.set(f"udiv i64 {loop.index}, {groups}")
    group = text.set(f"urem i64 {loop.index}, {groups}")
    before = text.set(f"mul i64 {text.set(f'mul i64 {row}, {half}')}, 2")
    gate = text.at(text.at(source, before), text.set(f"mul i64 {group}, {4 * GROUP}"))
    up = text.at(gate, half)
    values = []
    for at in (0, 4 * LANES):
        gates = _least(text, text.load(FLOATS, text.at(gate, at)), high)
        ups = _least(text, text.load(FLOATS, text.at(up, at)), high)
        below = text.set(f"fcmp olt {FLOATS} {ups}, {low}")
        ups = text.set(f"select <16 x i1> {below}, {FLOATS} {low}, {FLOATS} {ups}")
        power = write_exp(text, text.set(f"fneg {FLOATS} {gates}"))
        divisor = text.set(f"fadd {FLOATS} {power}, {numbers(1.0)}")
        gated = text.set(f"fdiv {FLOATS} {gates}, {divisor}")
        values.append(text.set(f"fmul {FLOATS} {gated}, {ups}"))
    round_group_int8(text, values, text.at(out, text.set(f"mul i64 {loop.index}, {RECORD}")))
    loop.close()
    text.do("ret void")
    text.raw("}")


def _least(text: Text, x: str, limit: str) -> str:
    """The lesser; of a NaN, the NaN."""
    above = text.set(f"fcmp ogt {FLOATS} {x}, {limit}")
    return text.set(f"select <16 x i1> {above}, {FLOATS} {limit}, {FLOATS} {x}")
