"""The race of a row's tokens in LLVM's text: a quick bound of each token's score, and a score in
float64 for the few whose bound reaches the best so far.

A race is decided only if no rounding can decide it otherwise than `sampling.race` does.
"""

import math
import struct

from dspark_kernels.cpu.float_text import (
    FLOATS,
    LANES,
    WORDS,
    number,
    numbers,
    write_exp,
    write_tree,
)
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text, constant
from dspark_kernels.cpu.philox_text import write_block, write_keys

RECORD = ("logits", "count", "seed", "place", "temperature", "top_p", "margin", "token")
STATE = ("best", "second", "token", "score", "limit", "near", "floor")  # of a race under way
UNDECIDED = -1
MOST_NOISE = 22.9  # above 33 ln 2, the largest there is
NOISE_BIAS, NOISE_SLOPE = 159 * math.log(2), -math.log(2) * 2.0**-23
# Near the top a score is below 32 in magnitude: noise and sum are rounded to 2**-20 each, so that
# two scores are MARGIN / 2 from their exact difference at most.
MARGIN = 2.0**-17
SLACK = 2.0**-10  # above MARGIN and all that quick bounds are off by
ALIKE = 2.0**-16  # scores whose probabilities may be rounded to equal ones, or in another order
FAINT = -40.0  # less is no mass: 2**18 tokens of it are 1e-12
LOWEST = -1e30
MOST_TRIES = 64
SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
LOG_TERMS = 10  # the next one is below 2**-52: |z| is at most 0.172


def write_race(text: Text) -> None:
    """Words: a table of one RECORD per row. A row's token, or UNDECIDED."""
    text.raw("define void @race(ptr %own, ptr %step, i64 %first, i64 %last) {")
    table = text.argument("%own", 0, "ptr")
    rows = Loop(text, "%first", "%last")
    record = text.at(table, text.set(f"mul i64 {rows.index}, {8 * len(RECORD)}"))
    text.do(f"call void @race_row(ptr {record})")
    rows.close()
    text.do("ret void")
    text.raw("}")
    _write_row(text)
    _write_lanes(text)
    _write_log(text)


def _write_row(text: Text) -> None:
    text.raw("define internal void @race_row(ptr %record) {")
    row = _Row(text)
    top, is_sound = row.largest()
    text.store("i64", str(UNDECIDED), row.word("token"))
    start = text.set(f"select i1 {is_sound}, i64 0, i64 {MOST_TRIES}")
    tries = Loop(text, start, str(MOST_TRIES), [Carried("float", number(LOWEST))])
    row.begin(tries.values[0])
    row.race(top)
    best, second = row.read("best", "double"), row.read("second", "double")
    gap = text.set(f"fsub double {best}, {second}")
    is_won = text.set(f"fcmp ogt double {gap}, {_double(MARGIN)}")
    is_kept, is_cut = row.judge(top)
    is_done = text.set(f"and i1 {is_won}, {is_kept}")
    won = row.read("token", "i64")
    token = text.set(f"select i1 {is_done}, i64 {won}, i64 {UNDECIDED}")
    text.store("i64", token, row.word("token"))
    # if the winner is cut off, the rest race again; those as likely as it are cut off too
    step = text.set(f"select i1 {is_cut}, i64 1, i64 {MOST_TRIES}")
    floor = text.set(f"fadd float {row.read('score', 'float')}, {number(ALIKE)}")
    tries.close([floor], step)
    text.do("ret void")
    text.raw("}")


class _Row:
    """The parts of race_row, over blocks of 16 logits; what is missing in the last is -inf."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._state, self._rest, self._lanes = (
            text.set(f"alloca [{size} x i8], align 64") for size in (8 * len(STATE), 64, 192)
        )
        self._logits, self._count = text.load("ptr", self.word("logits"), 8), self._load("count")
        more = text.set(f"add i64 {self._count}, {LANES - 1}")
        self._blocks = text.set(f"lshr i64 {more}, 4")
        self._whole = text.set(f"lshr i64 {self._count}, 4")
        self._keys, self._place = write_keys(text, self._load("seed")), self._load("place")
        self._temperature = text.load("float", self.word("temperature"), 8)
        self._inverse = text.set(f"fdiv float 1.0, {self._temperature}")
        text.store(FLOATS, numbers(-math.inf), self._rest)
        begin = text.set(f"shl i64 {self._whole}, 4")
        loop = Loop(text, begin, self._count)
        value = text.load("float", text.at(self._logits, text.set(f"shl i64 {loop.index}, 2")), 4)
        lane = text.set(f"sub i64 {loop.index}, {begin}")
        text.store("float", value, text.at(self._rest, text.set(f"shl i64 {lane}, 2")), 4)
        loop.close()

    def word(self, name: str) -> str:
        return self._text.at("%record", 8 * RECORD.index(name))

    def _load(self, name: str, kind: str = "i64") -> str:
        return self._text.load(kind, self.word(name), 8)

    def read(self, name: str, kind: str) -> str:
        return self._text.load(kind, self._at(name), 8)

    def _at(self, name: str) -> str:
        return self._text.at(self._state, 8 * STATE.index(name))

    def _block(self, index: str) -> str:
        text = self._text
        own = text.at(self._logits, text.set(f"shl i64 {index}, 6"))
        is_whole = text.set(f"icmp slt i64 {index}, {self._whole}")
        place = text.set(f"select i1 {is_whole}, ptr {own}, ptr {self._rest}")
        return text.load(FLOATS, place, 4)

    def _quick(self, values: str, top: str) -> tuple[str, str]:
        """Differences to the largest, and about what they are over the temperature."""
        text = self._text
        below = text.set(f"fsub {FLOATS} {values}, {text.splat('float', LANES, top)}")
        inverse = text.splat("float", LANES, self._inverse)
        return below, text.set(f"fmul {FLOATS} {below}, {inverse}")

    def _any(self, mask: str) -> str:
        bits = self._text.set(f"bitcast <{LANES} x i1> {mask} to i{LANES}")
        return self._text.set(f"icmp ne i{LANES} {bits}, 0")

    def largest(self) -> tuple[str, str]:
        """And whether it is a finite number."""
        text, mask = self._text, f"<{LANES} x i1>"
        start = [Carried(FLOATS, numbers(-math.inf)), Carried(mask, "zeroinitializer")]
        loop = Loop(text, "0", self._blocks, start)
        values = self._block(loop.index)
        is_nan = text.set(f"fcmp uno {FLOATS} {values}, {values}")
        is_more = text.set(f"fcmp ogt {FLOATS} {values}, {loop.values[0]}")
        best, wrong = loop.close(
            [
                text.set(f"select {mask} {is_more}, {FLOATS} {values}, {FLOATS} {loop.values[0]}"),
                text.set(f"or {mask} {loop.values[1]}, {is_nan}"),
            ]
        )
        top = write_tree(text, best, "largest")
        inside = [text.set(f"fcmp olt float {top}, {number(math.inf)}")]
        inside.append(text.set(f"fcmp ogt float {top}, {number(-math.inf)}"))
        inside.append(text.set(f"xor i1 {self._any(wrong)}, true"))
        both = text.set(f"and i1 {inside[0]}, {inside[1]}")
        return top, text.set(f"and i1 {both}, {inside[2]}")

    def begin(self, floor: str) -> None:
        """A race of the tokens whose score without noise is above `floor`."""
        for name in ("best", "second"):
            self._text.store("double", _double(LOWEST), self._at(name), 8)
        self._text.store("i64", str(UNDECIDED), self._at("token"), 8)
        for name in ("score", "limit", "near"):
            self._text.store("float", number(LOWEST), self._at(name), 8)
        self._text.store("float", floor, self._at("floor"), 8)

    def race(self, top: str) -> None:
        text = self._text
        loop = Loop(text, "0", self._blocks)
        below, quick = self._quick(self._block(loop.index), top)
        limit = text.splat("float", LANES, self.read("limit", "float"))
        with text.only_if(self._any(text.set(f"fcmp oge {FLOATS} {quick}, {limit}"))):
            words = self._words(loop.index)
            bounds = text.set(f"fadd {FLOATS} {quick}, {self._most_noise(words)}")
            near = text.splat("float", LANES, self.read("near", "float"))
            with text.only_if(self._any(text.set(f"fcmp oge {FLOATS} {bounds}, {near}"))):
                for index, (kind, lanes) in enumerate(
                    ((FLOATS, below), (FLOATS, bounds), (WORDS, words))
                ):
                    text.store(kind, lanes, text.at(self._lanes, 64 * index))
                factors = f"float {self._temperature}, float {self._inverse}"
                base = text.set(f"shl i64 {loop.index}, 4")
                text.do(
                    f"call void @race_lanes(ptr {self._state}, ptr {self._lanes}, {factors}, "
                    f"i64 {base})"
                )
        loop.close()

    def _words(self, index: str) -> str:
        text, found = self._text, "poison"
        first = text.set(f"shl i64 {index}, 1")
        blocks = (first, text.set(f"or i64 {first}, 1"))
        numbers_of = [
            w for each in blocks for w in write_block(text, each, self._place, self._keys)
        ]
        for lane, word in enumerate(numbers_of):
            found = text.set(f"insertelement <8 x i64> {found}, i64 {word}, i64 {lane}")
        return text.set(f"bitcast <8 x i64> {found} to {WORDS}")

    def _most_noise(self, words: str) -> str:
        """No less than their noise: -log(u) is at least 1 - u, and a float's bits are no more than
        its logarithm."""
        text = self._text
        above = text.set(f"xor {WORDS} {words}, {constant('i32', LANES, -1)}")
        above = text.set(f"uitofp {WORDS} {above} to {FLOATS}")
        above = text.set(f"fadd {FLOATS} {above}, {numbers(0.5)}")
        bits = text.set(f"bitcast {FLOATS} {above} to {WORDS}")
        steps = text.set(f"sitofp {WORDS} {bits} to {FLOATS}")
        return text.fma(LANES, steps, numbers(NOISE_SLOPE), numbers(NOISE_BIAS))

    def judge(self, top: str) -> tuple[str, str]:
        """Whether the winner is surely in the nucleus, and whether it surely is not: by the mass
        of likelier tokens."""
        text, top_p = self._text, self._load("top_p", "double")
        is_all = text.set(f"fcmp oge double {top_p}, 1.0")
        score = self.read("score", "float")
        blocks = text.set(f"select i1 {is_all}, i64 0, i64 {self._blocks}")
        whole, upper, lower = self._masses(blocks, top, score)
        own = text.set(f"extractelement {FLOATS} {write_exp(text, self._splat(score))}, i64 0")
        before = text.set(f"fsub double {upper}, {text.set(f'fpext float {own} to double')}")
        margin = self._load("margin", "double")
        least, most = (text.set(f"{way} double {top_p}, {margin}") for way in ("fsub", "fadd"))
        is_first = text.set(f"fcmp ole double {before}, 0.0")
        least, most = (text.set(f"fmul double {bound}, {whole}") for bound in (least, most))
        is_below = text.set(f"fcmp olt double {before}, {least}")
        is_kept = text.set(f"or i1 {text.set(f'or i1 {is_all}, {is_first}')}, {is_below}")
        is_cut = text.set(f"fcmp oge double {lower}, {most}")
        return is_kept, text.set(f"and i1 {is_cut}, {text.set(f'xor i1 {is_kept}, true')}")

    def _splat(self, value: str) -> str:
        return self._text.splat("float", LANES, value)

    def _masses(self, blocks: str, top: str, score: str) -> tuple[str, str, str]:
        """Of all tokens, of those that may be as likely as one with this score or likelier, and of
        those that are likelier than any as likely as it."""
        text, kind, mask = self._text, f"<{LANES} x double>", f"<{LANES} x i1>"
        upper, lower = (
            self._splat(text.set(f"fadd float {score}, {number(by)}")) for by in (-ALIKE, 2 * ALIKE)
        )
        loop = Loop(text, "0", blocks, [Carried(kind, "zeroinitializer")] * 3)
        _, quick = self._quick(self._block(loop.index), top)
        is_heavy = self._any(text.set(f"fcmp ogt {FLOATS} {quick}, {numbers(FAINT)}"))
        with text.only_if(is_heavy) as branch:
            masses = text.set(f"fpext {FLOATS} {write_exp(text, quick)} to {kind}")
            sums = [text.set(f"fadd {kind} {loop.values[0]}, {masses}")]
            for test, bound, total in (("oge", upper, 1), ("ogt", lower, 2)):
                is_in = text.set(f"fcmp {test} {FLOATS} {quick}, {bound}")
                part = text.set(f"select {mask} {is_in}, {kind} {masses}, {kind} zeroinitializer")
                sums.append(text.set(f"fadd {kind} {loop.values[total]}, {part}"))
        totals = loop.close(branch.joined(kind, loop.values, sums))
        whole, above, beyond = (
            text.set(f"call double @llvm.vector.reduce.fadd.v16f64(double 0.0, {kind} {total})")
            for total in totals
        )
        return whole, above, beyond


def _write_lanes(text: Text) -> None:
    """Scores of those of 16 tokens whose bound reaches the best one so far."""
    text.raw(
        "define internal void @race_lanes"
        "(ptr %state, ptr %lanes, float %temperature, float %inverse, i64 %base) noinline {"
    )

    def place(name: str) -> str:
        return text.at("%state", 8 * STATE.index(name))

    loop = Loop(text, "0", str(LANES))
    offset = text.set(f"shl i64 {loop.index}, 2")
    lanes = [text.at("%lanes", text.set(f"add i64 {offset}, {start}")) for start in (0, 64, 128)]
    below, bound = (text.load("float", lane, 4) for lane in lanes[:2])
    quick = text.set(f"fmul float {below}, %inverse")
    is_near = text.set(f"fcmp oge float {bound}, {text.load('float', place('near'), 8)}")
    floor = text.load("float", place("floor"), 8)
    is_in = text.set(f"fcmp ogt float {quick}, {floor}")
    with text.only_if(text.set(f"and i1 {is_near}, {is_in}")):
        scaled = text.set(f"fdiv float {below}, %temperature")
        word = text.load("i32", lanes[2], 4)
        half = text.set(f"fadd double {text.set(f'uitofp i32 {word} to double')}, 0.5")
        uniform = text.set(f"fmul double {half}, {_double(2.0**-32)}")
        waiting = text.set(f"fneg double {text.set(f'call double @log64(double {uniform})')}")
        less = text.set(f"call double @log64(double {waiting})")
        exact = text.set(f"fsub double {text.set(f'fpext float {scaled} to double')}, {less}")
        best, second = (text.load("double", place(name), 8) for name in ("best", "second"))
        is_best = text.set(f"fcmp ogt double {exact}, {best}")
        lesser = text.set(f"select i1 {is_best}, double {best}, double {exact}")
        is_more = text.set(f"fcmp ogt double {lesser}, {second}")
        second = text.set(f"select i1 {is_more}, double {lesser}, double {second}")
        text.store("double", second, place("second"), 8)
        with text.only_if(is_best):
            text.store("double", exact, place("best"), 8)
            text.store("i64", text.set(f"add i64 %base, {loop.index}"), place("token"), 8)
            text.store("float", quick, place("score"), 8)
            near = text.set(f"fptrunc double {exact} to float")
            near = text.set(f"fsub float {near}, {number(SLACK)}")
            text.store("float", near, place("near"), 8)
            reach = text.set(f"fsub float {near}, {number(MOST_NOISE)}")
            least = text.set(f"fsub float {floor}, {number(SLACK)}")
            is_higher = text.set(f"fcmp ogt float {reach}, {least}")
            limit = text.set(f"select i1 {is_higher}, float {reach}, float {least}")
            text.store("float", limit, place("limit"), 8)
    loop.close()
    text.do("ret void")
    text.raw("}")


def _write_log(text: Text) -> None:
    """Natural logarithm of a positive normal float64, to a few times 2**-53 of it."""
    text.raw("define internal double @log64(double %x) {")
    bits = text.set("bitcast double %x to i64")
    moved = text.set(f"sub i64 {bits}, {SQRT_HALF_BITS}")
    power = text.set(f"ashr i64 {moved}, 52")
    rest = text.set(f"sub i64 {bits}, {text.set(f'shl i64 {power}, 52')}")
    rest = text.set(f"bitcast i64 {rest} to double")  # from sqrt(1/2) to sqrt(2)
    less, more = (text.set(f"{way} double {rest}, 1.0") for way in ("fsub", "fadd"))
    z = text.set(f"fdiv double {less}, {more}")
    square = text.set(f"fmul double {z}, {z}")
    total = _double(2.0 / (2 * LOG_TERMS + 1))
    for k in range(LOG_TERMS - 1, -1, -1):
        total = text.set(f"fmul double {total}, {square}")
        total = text.set(f"fadd double {total}, {_double(2.0 / (2 * k + 1))}")
    small = text.set(f"fmul double {total}, {z}")
    whole = text.set(f"sitofp i64 {power} to double")
    large = text.set(f"fmul double {whole}, {_double(math.log(2.0))}")
    text.do(f"ret double {text.set(f'fadd double {large}, {small}')}")
    text.raw("}")


def write_race_declarations(text: Text) -> None:
    text.raw(f"declare double @llvm.vector.reduce.fadd.v16f64(double, <{LANES} x double>)")


def _double(value: float) -> str:
    return "0x" + struct.pack(">d", value).hex().upper()
