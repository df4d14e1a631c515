"""Whether an answer goes round in a loop: its end is one stretch of text, several times over."""

import string

SEEN_CHARACTERS = 4096
FEWEST_TIMES, FEWEST_CHARACTERS = 4, 160
SIGNS = frozenset(string.punctuation + string.whitespace + "─│═║—–…")  # which make tables and rules
PROBE = 24  # characters that are looked for before the end


class Repetition:
    """Of one answer, as it comes."""

    def __init__(self) -> None:
        self._end = ""

    def add(self, text: str) -> None:
        self._end = (self._end + text)[-SEEN_CHARACTERS:]

    @property
    def is_looping(self) -> bool:
        return bool(repeated_stretch(self._end))


def repeated_stretch(text: str) -> str:
    """The stretch that the end of the text repeats exactly, at least FEWEST_TIMES and over
    FEWEST_CHARACTERS; "" if there is none. Rows of signs, as in tables, are no loop."""
    before = text.rfind(text[-PROBE:], 0, len(text) - 1)
    if len(text) < FEWEST_CHARACTERS or before < 0:
        return ""
    stretch = text[before + PROBE :]
    times = max(FEWEST_TIMES, -(-FEWEST_CHARACTERS // len(stretch)))
    is_repeated = text.endswith(stretch * times) and not SIGNS.issuperset(stretch)
    return stretch if is_repeated else ""
