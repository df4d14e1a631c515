"""What the operations of DeepSeek-V4 share, in LLVM's text: words, branches, rows in 16 lanes."""

import struct
from collections.abc import Sequence

from dspark_kernels.cpu.deepseek_v4.step import ROW, ROW_WORDS, STEP
from dspark_kernels.cpu.float_text import FLOATS, LANES, number, numbers, write_tree
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text
from dspark_kernels.paged_cache import PAGE

CHUNK_BYTES = 4 * LANES
KINDS = {"p": "ptr", "i": "i64"}


def begin(text: Text, name: str, kinds: str) -> list[str]:
    """Opens an operation; the values of its words, each "p" or "i"."""
    text.raw(f"define void @{name}(ptr %own, ptr %step, i64 %first, i64 %last) {{")
    return [text.argument("%own", i, KINDS[kind]) for i, kind in enumerate(kinds.split())]


def end(text: Text) -> None:
    text.do("ret void")
    text.raw("}")


def step_word(text: Text, name: str, kind: str = "i64") -> str:
    return text.argument("%step", STEP.index(name), kind)


def step_word_at(text: Text, index: str, kind: str = "ptr") -> str:
    """A word whose number is itself a word."""
    return text.load(kind, text.at("%step", text.set(f"shl i64 {index}, 3")), 8)


class Row:
    """The record of one row."""

    def __init__(self, text: Text, index: str) -> None:
        self.index = index
        place = text.set(f"mul i64 {index}, {8 * ROW_WORDS}")
        record = text.at(step_word(text, "table", "ptr"), place)
        pointers = ("rings", "pages")
        found = {
            n: text.argument(record, i, KINDS["pi"[n not in pointers]]) for i, n in enumerate(ROW)
        }
        self.position, self.rings, self.pages = (found[n] for n in ("position", *pointers))
        self.token, self.first, self.start, self.end = (found[n] for n in ROW[3:7])
        self.oldest, self.seen = found["oldest"], found["seen"]


class If:
    """What follows, up to `close`, is skipped where the condition is false."""

    def __init__(self, text: Text, condition: str) -> None:
        self._text, self._done = text, text.fresh("done")
        then = text.fresh("then")
        text.do(f"br i1 {condition}, label %{then}, label %{self._done}")
        text.label(then)

    def close(self) -> None:
        self._text.do(f"br label %{self._done}")
        self._text.label(self._done)


def times(text: Text, a: str, b: str | int) -> str:
    return text.set(f"mul i64 {a}, {b}")


def plus(text: Text, a: str, b: str | int) -> str:
    return text.set(f"add i64 {a}, {b}")


def minus(text: Text, a: str, b: str | int) -> str:
    return text.set(f"sub i64 {a}, {b}")


def split(text: Text, unit: str, parts: str) -> tuple[str, str]:
    """A unit's row and its part of it."""
    return text.set(f"udiv i64 {unit}, {parts}"), text.set(f"urem i64 {unit}, {parts}")


def as_float(text: Text, bits: str) -> str:
    """A word that holds the bits of a float."""
    return text.set(f"bitcast i32 {text.set(f'trunc i64 {bits} to i32')} to float")


def bits(value: float) -> int:
    return int.from_bytes(struct.pack("<f", value), "little")


def load(text: Text, base: str, chunk: str) -> str:
    return text.load(FLOATS, text.at(base, times(text, chunk, CHUNK_BYTES)))


def store(text: Text, value: str, base: str, chunk: str) -> None:
    text.store(FLOATS, value, text.at(base, times(text, chunk, CHUNK_BYTES)))


def splat(text: Text, value: str) -> str:
    return text.splat("float", LANES, value)


def fmul(text: Text, a: str, b: str) -> str:
    return text.set(f"fmul {FLOATS} {a}, {b}")


def fadd(text: Text, a: str, b: str) -> str:
    return text.set(f"fadd {FLOATS} {a}, {b}")


def shuffled(text: Text, x: str, order: Sequence[int]) -> str:
    places = ", ".join(f"i32 {place}" for place in order)
    return text.set(f"shufflevector {FLOATS} {x}, {FLOATS} {x}, <{len(order)} x i32> <{places}>")


def inverse_root(text: Text, squares: str, count: str, eps: str) -> str:
    """1 / sqrt(mean of squares + eps) in all lanes; `squares` in 16 lanes, of `count` numbers."""
    total = write_tree(text, squares)
    size = text.set(f"sitofp i64 {count} to float")
    mean = text.set(f"fadd float {text.set(f'fdiv float {total}, {size}')}, {eps}")
    root = text.set(f"call float @llvm.sqrt.f32(float {mean})")
    return splat(text, text.set(f"fdiv float {number(1.0)}, {root}"))


def norm(
    text: Text,
    source: str,
    out: str,
    weight: str,
    chunks: str,
    eps: str,
    squares: str | None = None,
) -> None:
    """out = source / root mean square * weight; the squares' sums in 16 lanes if they are known."""
    if squares is None:
        loop = Loop(text, "0", chunks, [Carried(FLOATS, "zeroinitializer")])
        x = load(text, source, loop.index)
        squares = loop.close([text.fma(LANES, x, x, loop.values[0])])[0]
    factor = inverse_root(text, squares, times(text, chunks, LANES), eps)
    loop = Loop(text, "0", chunks)
    x = fmul(text, load(text, source, loop.index), factor)
    store(text, fmul(text, x, load(text, weight, loop.index)), out, loop.index)
    loop.close()


def rotate(
    text: Text, x: str, chunks: str, turns: tuple[str, str], position: str, sign: float = 1.0
) -> None:
    """Adjacent pairs of `chunks` times 16 numbers, by the angles of a position; in place."""
    place = times(text, text.set(f"mul i64 {position}, {chunks}"), CHUNK_BYTES // 2)
    cos, sin = (text.at(table, place) for table in turns)
    signs = ", ".join(f"float {number(-sign if lane % 2 == 0 else sign)}" for lane in range(LANES))
    loop = Loop(text, "0", chunks)
    at = times(text, loop.index, CHUNK_BYTES // 2)
    both = []
    for table in (cos, sin):
        half = text.load("<8 x float>", text.at(table, at))
        twice = ", ".join(f"i32 {lane // 2}" for lane in range(LANES))
        both.append(
            text.set(
                f"shufflevector <8 x float> {half}, <8 x float> {half}, <{LANES} x i32> <{twice}>"
            )
        )
    whole = load(text, x, loop.index)
    swapped = shuffled(text, whole, [lane ^ 1 for lane in range(LANES)])
    turned = fmul(text, swapped, fmul(text, both[1], f"<{signs}>"))
    store(text, fadd(text, fmul(text, whole, both[0]), turned), x, loop.index)
    loop.close()


def turns_of(text: Text, cos_word: str) -> tuple[str, str]:
    """cos and sin, which follow each other among the words of a step."""
    return step_word_at(text, cos_word), step_word_at(text, plus(text, cos_word, 1))


def sigmoid(text: Text, exp_of_minus: str) -> str:
    one = numbers(1.0)
    return text.set(f"fdiv {FLOATS} {one}, {fadd(text, one, exp_of_minus)}")


def write_addresses(text: Text) -> None:
    """row_at: where a position's row is, in this pass or in its request's ring; entry_at: where a
    compressed entry is."""
    text.raw(
        "define internal ptr @row_at(i64 %position, i64 %start, i64 %first, ptr %rows, "
        "i64 %stride, ptr %ring, i64 %cells, i64 %bytes) {"
    )
    is_new = text.set("icmp sge i64 %position, %start")
    text.do(f"br i1 {is_new}, label %new, label %old")
    text.label("new")
    row = text.set(f"add i64 %first, {text.set('sub i64 %position, %start')}")
    text.do(f"ret ptr {text.at('%rows', text.set(f'mul i64 {row}, %stride'))}")
    text.label("old")
    cell = text.set("urem i64 %position, %cells")
    text.do(f"ret ptr {text.at('%ring', text.set(f'mul i64 {cell}, %bytes'))}")
    text.raw("}")
    text.raw(
        "define internal ptr @entry_at(i64 %entry, ptr %pages, ptr %half, i64 %page_bytes, "
        "i64 %ratio, i64 %bytes) {"
    )
    per_page = text.set(f"udiv i64 {PAGE}, %ratio")
    index = text.set(f"udiv i64 %entry, {per_page}")
    number_at = text.at("%pages", text.set(f"shl i64 {index}, 2"))
    page = text.set(f"sext i32 {text.load('i32', number_at)} to i64")
    inside = text.set(f"urem i64 %entry, {per_page}")
    base = text.at("%half", text.set(f"mul i64 {page}, %page_bytes"))
    text.do(f"ret ptr {text.at(base, text.set(f'mul i64 {inside}, %bytes'))}")
    text.raw("}")


def row_at(
    text: Text, row: Row, position: str, rows: str, stride: str, ring: str, cells: str, size: str
) -> str:
    return text.set(
        f"call ptr @row_at(i64 {position}, i64 {row.start}, i64 {row.first}, ptr {rows}, "
        f"i64 {stride}, ptr {ring}, i64 {cells}, i64 {size})"
    )


def entry_at(text: Text, row: Row, entry: str, half: str, ratio: str, size: str) -> str:
    page_bytes = step_word(text, "page_bytes")
    return text.set(
        f"call ptr @entry_at(i64 {entry}, ptr {row.pages}, ptr {half}, i64 {page_bytes}, "
        f"i64 {ratio}, i64 {size})"
    )
