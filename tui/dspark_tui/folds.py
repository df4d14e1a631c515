"""What stands in the box for long pastes, which are put in its place when a prompt is sent."""

import re

from dspark.chat.attachments import attach, detach
from dspark.plural import counted

FOLDED_LINES, FOLDED_CHARACTERS = 10, 1500


class Pastes:
    def __init__(self) -> None:
        self._texts: dict[str, str] = {}  # by what stands for them

    def folded_paste(self, text: str) -> str:
        """What stands for it in the box: a short one itself."""
        text = re.sub(r"\r\n?", "\n", text)
        lines = text.removesuffix("\n").count("\n") + 1
        is_short = lines <= FOLDED_LINES and len(text) <= FOLDED_CHARACTERS
        if is_short or not text.strip():
            return text
        size = counted(lines, "line") if lines > 1 else f"{len(text):,} characters"
        number = 1
        while self._texts.setdefault(marker := _marker(number, size), text) != text:
            number += 1
        return marker

    def expand(self, text: str) -> str:
        if not self._texts:
            return text
        markers = "|".join(map(re.escape, self._texts))
        return re.sub(markers, lambda match: self._texts[match[0]], text)

    def fold(self, text: str) -> str:
        for marker, pasted in self._texts.items():
            # A prompt is sent without spaces around it.
            text = text.replace(pasted, marker).replace(pasted.strip(), marker)
        return text

    def marker_before(self, text: str) -> str:
        """The one with which this text ends, or ""."""
        return next((marker for marker in self._texts if text.endswith(marker)), "")

    def sent(self, typed: str) -> str:
        """The prompt with its pastes and the files it names; no file is looked for in a paste.
        Raises InputError."""
        files = attach(typed).removeprefix(typed)
        return self.expand(typed) + files

    def typed(self, prompt: str) -> str:
        """A prompt that was sent, as it was written in the box."""
        return self.fold(detach(prompt)[0])

    def shown(self, prompt: str) -> str:
        """The same with the names and sizes of its files, as the transcript has it."""
        typed, files = detach(prompt)
        return "\n".join([self.fold(typed), *(f"+ {each.words}" for each in files)])


def _marker(number: int, size: str) -> str:
    return f"[Pasted text{'' if number == 1 else f' {number}'}, {size}]"
