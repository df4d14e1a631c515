"""Writes LLVM's text: values get unique names, loops carry values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple


class Carried(NamedTuple):
    """A value that a loop carries from one iteration to the next."""

    type: str
    start: str


class Text:
    """The lines of one or more functions."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._count = 0

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"

    def fresh(self, stem: str = "v") -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def set(self, instruction: str) -> str:
        """The name of its result."""
        name = "%" + self.fresh()
        self.do(f"{name} = {instruction}")
        return name

    def do(self, instruction: str) -> None:
        self._lines.append(f"  {instruction}")

    def raw(self, line: str) -> None:
        """As it is; but a function must not become calls of a C library's, which are not there."""
        if line.startswith("define"):
            line = line.replace(" {", ' "no-builtins" {')
        self._lines.append(line)

    def place(self) -> int:
        """A line to be filled in later."""
        self._lines.append("")
        return len(self._lines) - 1

    def fill(self, place: int, instruction: str) -> None:
        self._lines[place] = f"  {instruction}"

    def label(self, name: str) -> None:
        self._lines.append(f"{name}:")

    def at(self, base: str, offset: str | int) -> str:
        """The address `offset` bytes after `base`."""
        return base if offset == 0 else self.set(f"getelementptr i8, ptr {base}, i64 {offset}")

    def load(self, kind: str, address: str, align: int = 1) -> str:
        return self.set(f"load {kind}, ptr {address}, align {align}")

    def store(self, kind: str, value: str, address: str, align: int = 1) -> None:
        self.do(f"store {kind} {value}, ptr {address}, align {align}")

    def argument(self, args: str, index: int, kind: str = "i64") -> str:
        """Word number `index` at `args`."""
        return self.load(kind, self.at(args, 8 * index), 8)

    def splat(self, kind: str, lanes: int, value: str) -> str:
        whole = f"<{lanes} x {kind}>"
        first = self.set(f"insertelement {whole} poison, {kind} {value}, i64 0")
        return self.set(
            f"shufflevector {whole} {first}, {whole} poison, <{lanes} x i32> zeroinitializer"
        )

    @contextmanager
    def only_if(self, condition: str) -> Iterator["Branch"]:
        """What is written inside runs if the i1 is true."""
        before, inside, leave, after = (
            self.fresh(stem) for stem in ("before", "inside", "leave", "after")
        )
        self.do(f"br label %{before}")
        self.label(before)
        self.do(f"br i1 {condition}, label %{inside}, label %{after}")
        self.label(inside)
        yield Branch(self, before, leave)
        self.do(f"br label %{leave}")
        self.label(leave)
        self.do(f"br label %{after}")
        self.label(after)

    def fma(self, lanes: int, a: str, b: str, c: str) -> str:
        """a b + c, rounded once."""
        kind = f"<{lanes} x float>"
        return self.set(f"call {kind} @llvm.fma.v{lanes}f32({kind} {a}, {kind} {b}, {kind} {c})")


class Branch:
    """Where `only_if` branched, and where it comes back from."""

    def __init__(self, text: Text, before: str, inside: str) -> None:
        self._text, self._before, self._inside = text, before, inside

    def joined(self, kind: str, before: Sequence[str], inside: Sequence[str]) -> list[str]:
        """Values from inside, or those from before; right behind the branch."""
        return [
            self._text.set(f"phi {kind} [{old}, %{self._before}], [{new}, %{self._inside}]")
            for old, new in zip(before, inside, strict=True)
        ]


class Loop:
    """for index in range(start, end, step); `values` are carried by the loop."""

    def __init__(
        self, text: Text, start: str, end: str, carried: Sequence[Carried] = (), step: str = "1"
    ) -> None:
        self._text, self._step = text, step
        self._names = [text.fresh(stem) for stem in ("before", "head", "body", "turn", "after")]
        before, head, body, _, after = self._names
        for line in (f"br label %{before}", f"br label %{head}"):
            text.do(line)
            text.label(before if line.endswith(before) else head)
        self._start, self._carried = start, carried
        self._places = [text.place() for _ in range(len(carried) + 1)]
        self.index = "%" + text.fresh("i")
        self.values = ["%" + text.fresh("c") for _ in carried]
        more = text.set(f"icmp slt i64 {self.index}, {end}")
        text.do(f"br i1 {more}, label %{body}, label %{after}")
        text.label(body)

    def close(self, values: Sequence[str] = (), step: str | None = None) -> list[str]:
        """`values` for the next turn -> those after the last one; `step` if the turn chose it."""
        text = self._text
        before, head, _, turn, after = self._names
        text.do(f"br label %{turn}")
        text.label(turn)
        following = text.set(f"add nsw i64 {self.index}, {step or self._step}")
        text.do(f"br label %{head}")
        text.label(after)
        whole = [Carried("i64", self._start), *self._carried]
        names, new = [self.index, *self.values], [following, *values]
        for place, name, (kind, start), value in zip(self._places, names, whole, new, strict=True):
            text.fill(place, f"{name} = phi {kind} [{start}, %{before}], [{value}, %{turn}]")
        return self.values


def vector(kind: str, lanes: int) -> str:
    return f"<{lanes} x {kind}>"


def constant(kind: str, lanes: int, value: int) -> str:
    """A vector of the same number in every lane."""
    return "<" + ", ".join([f"{kind} {value}"] * lanes) + ">"
