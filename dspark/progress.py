"""Work as generators that yield their progress and return their result."""

from collections.abc import Callable, Generator
from typing import TypeVar

Item = TypeVar("Item")
Other = TypeVar("Other")
Result = TypeVar("Result")


def follow(
    work: Generator[Item, None, Result], show: Callable[[Item], object] = lambda item: None
) -> Result:
    """Run `work` to its end, show each item it yields, and return its result.

    An exception from `show`, such as Ctrl+C while a bar is drawn, is raised inside `work`, which
    may still return what is complete.
    """
    try:
        item = next(work)
        while True:
            try:
                show(item)
            except BaseException as error:
                item = work.throw(error)
            else:
                item = next(work)
    except StopIteration as end:
        result: Result = end.value
        return result


def translated(
    work: Generator[Item, None, Result], tell: Callable[[Item], Other]
) -> Generator[Other, None, Result]:
    """The same work, yielding `tell(item)` in place of each item."""
    try:
        while True:
            yield tell(next(work))
    except StopIteration as end:
        result: Result = end.value
        return result
