"""Answers in channels, as gpt-oss writes them (the harmony format)."""

from dspark.text.marks import ANY_MARK, Marks
from dspark.text.spans import Span, spans_of

MESSAGE = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
ENDS = ("<|return|>", "<|call|>")
CHANNELS = ("analysis", "commentary", "final")
CONSTRAIN = "<|constrain|>"
RECIPIENT = " to="


class ChannelSplitter:
    """gpt-oss's messages: a header, then text in a channel; the final channel is the answer."""

    def __init__(self, marks: Marks, tail: str) -> None:
        self._marks = marks
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
                self._take(part)
            elif self._header is None:
                spans += self._emit(part)
            else:
                self._header += part
                spans += self._plain(self._header)
        return spans

    def finish(self) -> list[Span]:
        return self._plain(self._header or "", is_last=True)

    def _take(self, mark: str) -> None:
        self._role = None
        if mark in (self._start, self._channel) or mark in self._ends:
            self._header, self._has_channel = "", mark == self._channel
        elif mark == self._message:
            self._enter()
        elif self._header is not None and mark != self._constrain:
            # malformed: after a channel's name any other mark opens its text
            self._has_channel = self._header.strip() in CHANNELS
            if self._has_channel:
                self._enter()
            else:
                self._header = ""

    def _enter(self) -> None:
        name = (self._header or "").split()[:1]
        self._is_thinking = self._has_channel and name != ["final"]
        self._header, self._is_new = None, True

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
        is_next = self._is_new and self._is_thinking in self._told
        self._is_new = False
        self._told |= {self._is_thinking}
        return spans_of(("\n\n" if is_next else "") + self._marks.show(text), self._is_thinking)
