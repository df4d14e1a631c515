"""Work that is done already, in the place of some that takes long."""

from collections.abc import Generator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def done(result: Result, *items: Item) -> Generator[Item, None, Result]:
    """Yields the items and returns the result."""
    yield from items
    return result
