"""Marks in a text, each as one private character, whether written as a token or as plain text.

The characters are lone surrogates, which text never contains, so they cannot be mistaken for it.
"""

import re
from collections.abc import Container, Iterable

from dspark.text.characters import TokenTexts

OTHER = "\ud800"  # any other special token
ANY_MARK = re.compile("([\ud800-\udfff])")


class Marks:
    """The marks of one tokenizer; a new one gets the next free character."""

    def __init__(self, texts: TokenTexts) -> None:
        self._tokens = texts
        self._of_text: dict[str, str] = {}
        self._of_token: dict[int, str] = {}
        self._names: dict[str, str] = {}
        self._special: set[str] = set()  # marks that are never shown as text

    def token(self, text: str) -> str | None:
        """The mark of the token with this text; None if the vocabulary has no such token."""
        token_id = self._tokens.id_of(text)
        if token_id is None:
            return None
        mark = self.text(text)
        self._of_token[token_id] = mark
        if token_id in self._tokens.special_ids:
            self._special.add(mark)
        return mark

    def text(self, text: str) -> str:
        """The mark that stands for this text."""
        mark = self._of_text.setdefault(text, chr(ord(OTHER) + 1 + len(self._of_text)))
        self._names[mark] = text
        return mark

    @property
    def known(self) -> Iterable[str]:
        return self._names

    def replace(self, token_id: int, text: str) -> str:
        """The text of a token, or its mark if it is one."""
        mark = self._of_token.get(token_id)
        if token_id in self._tokens.special_ids:
            return text + (mark or OTHER)
        return text if mark is None else text.replace(self._tokens.text_of(token_id), mark)

    def show(self, text: str, also: Container[str] = ()) -> str:
        """Replaces marks that turned out to be ordinary text, and those in `also`, by that text."""

        def name(match: re.Match[str]) -> str:
            mark = match[1]
            is_hidden = mark in self._special and mark not in also
            return mark if is_hidden else self._names.get(mark, mark)

        return ANY_MARK.sub(name, text)

    def patterns(self, stop_strings: Iterable[str]) -> list[str]:
        """Each stop string as text, and with the special tokens and marks that it contains."""
        patterns: list[str] = []
        for stop in stop_strings:
            names = {name for name in self._tokens.special_texts if name in stop}
            for name in names:
                self.token(name)
            names |= {name for name in self._of_text if name in stop}
            longest_first = sorted(names, key=len, reverse=True)
            split = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", stop)
            patterns += [stop, "".join(self._of_text.get(part, part) for part in split)]
        return patterns


def without_marks(text: str) -> str:
    return ANY_MARK.sub("", text)
