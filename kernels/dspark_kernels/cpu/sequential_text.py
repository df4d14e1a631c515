"""The sequential head in LLVM's text: features of the last token, then the choice of the next one.

A unit is a request. The words of `step` are STEP, those of each function stand above it.
"""

from collections.abc import Sequence

from dspark_kernels.cpu.argmax import write_largest
from dspark_kernels.cpu.float_text import FLOATS, LANES, numbers, write_tree
from dspark_kernels.cpu.llvm_text import Carried, Loop, Text

# number of requests, then addresses: hidden states, logits, a record of OWN_RECORD per request,
# noise laid out as the logits, float32 1 / temperature per request
STEP = ("requests", "hidden", "logits", "owns", "noise", "inverses")
OWN_RECORD = ("rows", "ids", "count")  # of a request's own columns
FEATURE_WORDS = (
    "tokens", "token_bytes", "w1", "rank", "x", "x_bytes", "hidden_at", "hidden_bytes",
    "width_bytes", "rounded", "groups", "confidence", "confidences", "confidence_bytes", "bias",
)  # fmt: skip
CHOICE_WORDS = (
    "tokens", "token_bytes", "logits_at", "logits_bytes", "bias", "bias_bytes", "columns", "ids",
    "own_at", "x", "x_bytes",
)  # fmt: skip


class _Words:
    """Words of an operation or of the step, by name."""

    def __init__(self, text: Text, base: str, names: Sequence[str]) -> None:
        self._text, self._base, self._names = text, base, names

    def number(self, name: str) -> str:
        return self._text.argument(self._base, self._names.index(name))

    def address(self, name: str) -> str:
        return self._text.argument(self._base, self._names.index(name), "ptr")

    def row(self, name: str, index: str, size: str) -> str:
        """Of a table whose rows are as far apart as the word `size` says."""
        place = self._text.set(f"mul i64 {index}, {self.number(size)}")
        return self._text.at(self.address(name), place)


def write_draft_features(text: Text) -> None:
    """x = [hidden state, embedding of the last token], its second half rounded; the confidence."""
    text.raw("define void @draft_features(ptr %own, ptr %step, i64 %first, i64 %last) {")
    own, step = _Words(text, "%own", FEATURE_WORDS), _Words(text, "%step", STEP)
    requests, width = step.number("requests"), own.number("width_bytes")
    loop = Loop(text, "%first", "%last")
    x = own.row("x", loop.index, "x_bytes")
    hidden = text.at(step.address("hidden"), own.number("hidden_at"))
    offset = text.set(f"mul i64 {loop.index}, {own.number('hidden_bytes')}")
    _copy(text, text.at(hidden, offset), x, width, FLOATS)
    token = text.load("i64", own.row("tokens", loop.index, "token_bytes"), 8)
    rank_bytes = text.set(f"shl i64 {own.number('rank')}, 2")
    embedding = text.at(own.address("w1"), text.set(f"mul i64 {token}, {rank_bytes}"))
    features = text.at(x, width)
    _copy(text, embedding, features, rank_bytes, "float")
    groups = own.number("groups")
    words = f"i64 {groups}, i64 {loop.index}, i64 {requests}"
    text.do(f"call void @round_row(ptr {features}, ptr {own.address('rounded')}, {words})")
    _confidence(text, own, loop.index, x)
    loop.close()
    text.do("ret void")
    text.raw("}")


def _copy(text: Text, source: str, target: str, size: str, kind: str) -> None:
    step = 4 * LANES if kind == FLOATS else 4
    loop = Loop(text, "0", size, step=str(step))
    text.store(kind, text.load(kind, text.at(source, loop.index)), text.at(target, loop.index))
    loop.close()


def _confidence(text: Text, own: _Words, index: str, x: str) -> None:
    """A dot product over x, where there is a row for it."""
    row = own.address("confidence")
    there, after = text.fresh("there"), text.fresh("after")
    text.do(f"br i1 {text.set(f'icmp ne ptr {row}, null')}, label %{there}, label %{after}")
    text.label(there)
    dot = _dot(text, row, x, own.number("x_bytes"))
    bias = text.argument("%own", FEATURE_WORDS.index("bias"), "float")
    total = text.set(f"fadd float {dot}, {bias}")
    text.store("float", total, own.row("confidences", index, "confidence_bytes"))
    text.do(f"br label %{after}")
    text.label(after)


def _dot(text: Text, row: str, x: str, size: str) -> str:
    """16 sums, each in order, and then those in a tree."""
    loop = Loop(text, "0", size, [Carried(FLOATS, numbers(0.0))], step="64")
    one, other = (text.load(FLOATS, text.at(base, loop.index)) for base in (row, x))
    (sums,) = loop.close([text.fma(LANES, one, other, loop.values[0])])
    return write_tree(text, sums)


def write_draft_choice(text: Text, *, has_noise: bool) -> None:
    """Logits of all columns, and the column where they, or with noise the scores, are largest; the
    first of equals, a request's own columns last."""
    name = "draft_choice_noise" if has_noise else "draft_choice"
    text.raw(f"define void @{name}(ptr %own, ptr %step, i64 %first, i64 %last) {{")
    own, step = _Words(text, "%own", CHOICE_WORDS), _Words(text, "%step", STEP)
    loop = Loop(text, "%first", "%last")
    offset = text.set(f"mul i64 {loop.index}, {own.number('logits_bytes')}")
    offset = text.set(f"add i64 {offset}, {own.number('logits_at')}")
    logits, own_at = text.at(step.address("logits"), offset), own.number("own_at")
    record = text.set(f"mul i64 {loop.index}, {8 * len(OWN_RECORD)}")
    mine = _Words(text, text.at(step.address("owns"), record), OWN_RECORD)
    count, own_logits = mine.number("count"), text.at(logits, own_at)
    _own_columns(text, mine.address("rows"), count, own_logits, own, loop.index)
    score = _Score(text, step, offset, loop.index) if has_noise else None
    bias = own.row("bias", loop.index, "bias_bytes")

    def fixed(kind: str, at: str) -> str:
        place = text.at(logits, at)
        both = [text.load(kind, each) for each in (place, text.at(bias, at))]
        value = text.set(f"fadd {kind} {both[0]}, {both[1]}")
        text.store(kind, value, place)
        return value if score is None else score.of(kind, value, at)

    def further(kind: str, at: str) -> str:
        value = text.load(kind, text.at(own_logits, at))
        return (
            value if score is None else score.of(kind, value, text.set(f"add i64 {own_at}, {at}"))
        )

    top, column = write_largest(text, own.number("columns"), fixed)
    own_top, own_column = write_largest(text, count, further)
    tokens = [
        text.load("i64", text.at(ids, text.set(f"shl i64 {text.set(f'zext i32 {at} to i64')}, 3")))
        for ids, at in ((own.address("ids"), column), (mine.address("ids"), own_column))
    ]
    is_own = text.set(f"icmp sgt i32 {own_top}, {top}")
    token = text.set(f"select i1 {is_own}, i64 {tokens[1]}, i64 {tokens[0]}")
    text.store("i64", token, own.row("tokens", loop.index, "token_bytes"))
    loop.close()
    text.do("ret void")
    text.raw("}")


def _own_columns(text: Text, rows: str, count: str, logits: str, own: _Words, index: str) -> None:
    """Their rows hold output head and Markov table side by side, so x gives the whole logit."""
    x, size = own.row("x", index, "x_bytes"), own.number("x_bytes")
    loop = Loop(text, "0", count)
    row = text.at(rows, text.set(f"mul i64 {loop.index}, {size}"))
    place = text.at(logits, text.set(f"shl i64 {loop.index}, 2"))
    text.store("float", _dot(text, row, x, size), place)
    loop.close()


class _Score:
    """logit / temperature + noise."""

    def __init__(self, text: Text, step: _Words, offset: str, request: str) -> None:
        self._text = text
        self._noise = text.at(step.address("noise"), offset)
        place = text.at(step.address("inverses"), text.set(f"shl i64 {request}, 2"))
        self._inverse = text.load("float", place)

    def of(self, kind: str, value: str, at: str) -> str:
        text, inverse = self._text, self._inverse
        if kind == FLOATS:
            inverse = text.splat("float", LANES, inverse)
        scaled = text.set(f"fmul {kind} {value}, {inverse}")
        return text.set(f"fadd {kind} {scaled}, {text.load(kind, text.at(self._noise, at))}")
