"""Counts with nouns: one helper, so that "1 tokens" is never printed."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """counted(1, "token") is "1 token", counted(1200, "token") "1,200 tokens"."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
