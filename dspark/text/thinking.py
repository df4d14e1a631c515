"""Separates thinking from the answer: text between a model's thinking marks, and the rest.

The marks are looked up in the vocabulary; as plain text they count only if the chat template has
them. Thinking comes before the answer: a mark after the answer's first word is ordinary text.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Protocol

from dspark.text.channels import (
    CONSTRAIN,
    ENDS,
    MESSAGE,
    ChannelSplitter,
)
from dspark.text.marks import ANY_MARK, OTHER, Marks
from dspark.text.spans import Span, spans_of


@dataclass(frozen=True, slots=True)
class Format:
    """The marks that open (in some models followed by a word) and close thinking, and those that
    some models put around the answer."""

    opening: str
    closing: str
    answer_opening: str = ""
    answer_closing: str = ""
    word: str = ""


FORMATS = (
    Format("<think>", "</think>", "<answer>", "</answer>"),  # Qwen3, DeepSeek, GLM, Hunyuan
    Format("<thinking>", "</thinking>"),
    Format("<thought>", "</thought>"),  # EXAONE Deep
    Format("<reasoning>", "</reasoning>"),  # Reka
    Format("<seed:think>", "</seed:think>"),  # Seed-OSS
    Format("[THINK]", "[/THINK]"),  # Magistral
    Format("◁think▷", "◁/think▷"),  # Kimi-VL
    Format("<|channel>", "<channel|>", word="thought"),  # Gemma 4
    Format("<unused94>", "<unused95>", word="thought"),  # MedGemma
    # Command A
    Format("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    # OpenThinker
    Format(
        "<|begin_of_thought|>",
        "<|end_of_thought|>",
        "<|begin_of_solution|>",
        "<|end_of_solution|>",
    ),
    Format("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Format("<longcat_think>", "</longcat_think>"),  # LongCat
    Format("Here is my thought process:", "Here is my response:"),  # Granite
)
IN_TEXT = ("<think>", "<thinking>", "[THINK]")  # never the beginning of an answer
MAX_BLANK = 256  # characters of white space held back before an answer, in case a mark follows


class Splitter(Protocol):
    """Turns characters and marks into spans. Its state is plain values, so copy.copy clones it."""

    def push(self, text: str) -> list[Span]: ...

    def finish(self) -> list[Span]: ...


class Shows(Protocol):
    """Turns the characters that stand for marks back into text."""

    def show(self, text: str, also: Container[str] = ()) -> str: ...


class NoMarks:
    """For text without token ids: marks are matched as plain text."""

    def show(self, text: str, also: Container[str] = ()) -> str:
        return text


def text_splitter() -> "ThinkSplitter":
    """For answers of a server that leaves thinking in the text."""
    formats = [Format(each.opening, each.closing) for each in FORMATS if each.opening in IN_TEXT]
    return ThinkSplitter(NoMarks(), formats, "")


class Thinking:
    """A tokenizer's marks; creates the splitter for each request."""

    def __init__(self, marks: Marks, template: str) -> None:
        self._marks = marks
        self.has_channels = all(marks.token(name) for name in MESSAGE)
        for name in (*ENDS, CONSTRAIN) if self.has_channels else ():
            marks.token(name)
        formats = [_in_marks(each, marks, template) for each in FORMATS]
        self._formats = tuple(each for each in formats if each is not None)
        self._all = frozenset(marks.known)

    def splitter(self, tail: str | None, *, tells_calls: bool = False) -> Splitter:
        """tail: the end of the prompt in characters and marks, where thinking may be open; None:
        thinking is not separated. `tells_calls`: calls of tools are part of the answer."""
        if tail is None:
            return NoSplitter(self._marks, self._all)
        if self.has_channels:
            return ChannelSplitter(self._marks, tail, tells_calls=tells_calls)
        return ThinkSplitter(self._marks, self._formats, tail)


class NoSplitter:
    """Everything is the answer; thinking marks are shown, other special tokens are not."""

    def __init__(self, marks: Marks, shown: frozenset[str]) -> None:
        self._marks = marks
        self._shown = shown

    def push(self, text: str) -> list[Span]:
        return spans_of(self._marks.show(text, self._shown), is_thinking=False)

    def finish(self) -> list[Span]:
        return []


class ThinkSplitter:
    """Thinking between two marks, before the answer. Line breaks next to a mark belong to it."""

    def __init__(self, marks: Shows, formats: Sequence[Format], tail: str) -> None:
        self._marks = marks
        self._formats = formats
        self._wanted = tuple(m for f in formats for m in (f.opening, f.answer_opening) if m)
        end = tail.replace(OTHER, "").rstrip()
        self._open = next((f for f in formats if end.endswith(f.opening)), None)
        self._has_begun = not formats  # the answer's first word has been written
        self._is_after_mark = self._open is not None
        self._has_thought = False
        self._pending = ""
        self._breaks = ""  # at the end of thinking so far
        self._answer_closing = ""

    @property
    def is_thinking(self) -> bool:
        """Whether thinking is open."""
        return self._open is not None

    @property
    def closing(self) -> str:
        """The mark that would close it, or ""."""
        return "" if self._open is None else self._open.closing

    def push(self, text: str) -> list[Span]:
        self._pending += text.replace(OTHER, "")
        spans: list[Span] = []
        while self._step(spans):
            pass
        return spans

    def finish(self) -> list[Span]:
        text, self._pending = self._pending, ""
        return self._emit(text)

    def _step(self, spans: list[Span]) -> bool:
        """Consume the next mark, or all text that cannot begin one. True: more text remains."""
        if self._open is not None:
            return self._take(spans, (self._open.closing,))
        if self._has_begun:
            return self._take(spans, (self._answer_closing,) if self._answer_closing else ())
        rest = self._pending.lstrip()
        if rest.startswith(self._wanted):
            self._pending = rest
            return self._take(spans, self._wanted)
        is_waiting = any(mark.startswith(rest) for mark in self._wanted)
        self._has_begun = not is_waiting or len(self._pending) > MAX_BLANK
        return self._has_begun

    def _take(self, spans: list[Span], wanted: Sequence[str]) -> bool:
        hits = [(at, mark) for mark in wanted if (at := self._pending.find(mark)) >= 0]
        if not hits:
            cut = len(self._pending) - max((_overlap(self._pending, m) for m in wanted), default=0)
            spans += self._emit(self._pending[:cut])
            self._pending = self._pending[cut:]
            return False
        at, mark = min(hits)
        before, self._pending = self._pending[:at], self._pending[at + len(mark) :]
        spans += self._emit(before)
        token = ANY_MARK.search(mark)
        spans.append(Span(token[1] if token else mark, is_mark=True))
        self._enter(mark)
        return True

    def _enter(self, mark: str) -> None:
        opened = next((f for f in self._formats if f.opening == mark), None)
        answers = next((f for f in self._formats if f.answer_opening == mark), None)
        was_open, self._open = self._open, None
        self._breaks, self._is_after_mark, self._answer_closing = "", True, ""
        if was_open is None and opened is not None:
            self._open = opened
        elif was_open is None and answers is not None:
            self._has_begun, self._answer_closing = True, answers.answer_closing

    def _emit(self, text: str) -> list[Span]:
        if self._is_after_mark:
            text = text.lstrip("\r\n")
        is_thinking = self._open is not None
        if is_thinking:
            text = self._breaks + text
            shown = text.rstrip("\r\n")
            text, self._breaks = shown, text[len(shown) :]
        if not text:
            return []
        is_next = self._is_after_mark and is_thinking and self._has_thought
        self._is_after_mark = False
        self._has_thought |= is_thinking
        return spans_of(("\n\n" if is_next else "") + self._marks.show(text), is_thinking)


def _in_marks(each: Format, marks: Marks, template: str) -> Format | None:
    """The format as this model writes it: tokens, or plain text that its template knows."""
    opening, closing = marks.token(each.opening), marks.token(each.closing)
    if opening is None or closing is None:
        if each.closing not in template and each.opening not in template:
            return None
        opening, closing = each.opening, each.closing
        marks.text(opening), marks.text(closing)  # stop strings may contain them

    def around(name: str) -> str:
        return name and (marks.token(name) or (name if name in template else ""))

    answer = (around(each.answer_opening), around(each.answer_closing))
    return Format(opening + each.word, closing, *(answer if all(answer) else ("", "")))


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0
