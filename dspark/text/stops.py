"""Stop strings in streamed text: found at their first end, never shown."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A stop string, and for each of its prefixes the longest shorter one that ends it."""

    text: str
    falls_back: tuple[int, ...]

    def step(self, matched: int, character: str) -> int:
        """Number of matched characters after one more character."""
        while matched and self.text[matched] != character:
            matched = self.falls_back[matched - 1]
        return matched + 1 if self.text[matched] == character else 0


def _pattern(text: str) -> _Pattern:
    falls_back = [0]
    for end in range(1, len(text)):
        size = falls_back[-1]
        while size and text[size] != text[end]:
            size = falls_back[size - 1]
        falls_back.append(size + 1 if text[size] == text[end] else 0)
    return _Pattern(text, tuple(falls_back))


class StopMatcher:
    """Holds back text that may begin a stop string until that is decided.

    Of several stop strings the one that ends first wins, then the longest, however the text is
    split into parts.
    """

    def __init__(self, stop_strings: Iterable[str]) -> None:
        self._patterns = [_pattern(text) for text in dict.fromkeys(stop_strings) if text]
        self._matched = [0] * len(self._patterns)
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """The text that certainly precedes any stop string."""
        if not self._patterns:
            return text
        seen = self._held + text
        for index, character in enumerate(text, len(self._held)):
            steps = zip(self._patterns, self._matched, strict=True)
            self._matched = [pattern.step(matched, character) for pattern, matched in steps]
            length = self._longest_found()
            if length:
                self.is_stopped, self._held = True, ""
                return seen[: index + 1 - length]
        cut = len(seen) - max(self._matched)
        self._held = seen[cut:]
        return seen[:cut]

    def finish(self) -> str:
        """The text held back, at the end of the stream."""
        held, self._held = self._held, ""
        return held

    def _longest_found(self) -> int:
        return max(
            matched if matched == len(pattern.text) else 0
            for pattern, matched in zip(self._patterns, self._matched, strict=True)
        )
