"""Answers in channels, as gpt-oss writes them (the harmony format)."""

from dspark.text.marks import ANY_MARK, Marks
from dspark.text.spans import Span, spans_of
from dspark.text.tool_calls_harmony import CLOSE, OPEN
from dspark.text.tool_calls_harmony import MESSAGE as CALL_MESSAGE
from dspark.text.tool_calls_harmony import RECIPIENT as CALLED

MESSAGE = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
ENDS = ("<|return|>", "<|call|>")
CHANNELS = ("analysis", "commentary", "final")
CONSTRAIN = "<|constrain|>"
RECIPIENT = " to="


class ChannelSplitter:
    """gpt-oss's messages: a header, then text in a channel; the final channel is the answer.
    `tells_calls`: so are messages to functions, in the form of tool_calls_harmony."""

    def __init__(self, marks: Marks, tail: str, *, tells_calls: bool = False) -> None:
        self._marks, self._tells_calls = marks, tells_calls
        self._recipient = ""  # the function that this message calls, as far as its header tells
        self._is_call = False
        self._start, self._channel, self._message, end = (marks.text(name) for name in MESSAGE)
        self._ends = frozenset({end, *(marks.text(name) for name in ENDS)})
        self._constrain = marks.text(CONSTRAIN)
        self._header: str | None = None  # None inside a message
        self._has_channel = False
        self._is_thinking = False
        self._is_new = False  # no text of this message was returned yet
        self._told: frozenset[bool] = frozenset()  # of thinking, of the answer
        at = tail.rfind(self._start if self._start in tail else self._channel)
        if at >= 0:
            self.push(tail[at:])
        self._told = frozenset()
        # after the role a model may write its answer directly, without a channel
        self._role = None if self._has_channel else self._header

    def push(self, text: str) -> list[Span]:
        spans: list[Span] = []
        for part in filter(None, ANY_MARK.split(text)):
            if ANY_MARK.fullmatch(part):
                spans.append(Span(part, is_mark=True))
                spans += self._take(part)
            elif self._header is None:
                spans += self._emit(part)
            else:
                self._header += part
                spans += self._plain(self._header)
        return spans

    def finish(self) -> list[Span]:
        return self._plain(self._header or "", is_last=True)

    def _take(self, mark: str) -> list[Span]:
        """The text of the mark, where it opens or closes a call."""
        self._role = None
        self._recipient = self._called() or self._recipient
        spans: list[Span] = []
        if mark in (self._start, self._channel) or mark in self._ends:
            if self._is_call:
                spans.append(Span(CLOSE))
            self._is_call = False
            self._recipient = self._recipient if mark == self._channel else ""
            self._header, self._has_channel = "", mark == self._channel
        elif mark == self._message:
            spans += self._enter()
        elif self._header is not None and mark != self._constrain:
            # malformed: after a channel's name any other mark opens its text
            self._has_channel = self._header.strip() in CHANNELS
            if self._has_channel:
                spans += self._enter()
            else:
                self._header = ""
        return spans

    def _called(self) -> str:
        found = CALLED.search(self._header or "")
        return found[1] if found else ""

    def _enter(self) -> list[Span]:
        name = (self._header or "").split()[:1]
        self._is_call = self._tells_calls and bool(self._recipient)
        self._is_thinking = self._has_channel and name != ["final"] and not self._is_call
        self._header, self._is_new = None, not self._is_call
        return [Span(f"{OPEN}{self._recipient}{CALL_MESSAGE}")] if self._is_call else []

    def _plain(self, header: str, *, is_last: bool = False) -> list[Span]:
        """An answer without a channel: the text after the role does not name a recipient."""
        if self._role is None:
            return []
        text = header[len(self._role) :]
        if text.startswith(RECIPIENT) or (RECIPIENT.startswith(text) and not is_last):
            return []
        self._role = self._header = None
        return self._emit(text)

    def _emit(self, text: str) -> list[Span]:
        if not text:
            return []
        if self._is_call:
            return spans_of(self._marks.show(text), is_thinking=False)
        is_next = self._is_new and self._is_thinking in self._told
        self._is_new = False
        self._told |= {self._is_thinking}
        return spans_of(("\n\n" if is_next else "") + self._marks.show(text), self._is_thinking)
