"""Replaces control characters, which the terminal would obey, by their Unicode pictures."""

VISIBLE: dict[int, int | None] = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    0x7F: 0x2421,
    ord("\r"): None,
}


def visible(text: str) -> str:
    return text.translate(VISIBLE)


def one_line(text: str, most: int = 200) -> str:
    """Foreign text in one line, for a message."""
    return visible(" ".join(text.split()))[:most]
