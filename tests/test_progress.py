"""Work that tells how far it is, and what comes of it."""

import pytest

from dspark.progress import follow


def work(stages):
    done = []
    try:
        for stage in stages:
            yield stage
            done.append(stage)
    except KeyboardInterrupt:
        if not done:
            raise
    return done


def test_every_item_is_shown_and_the_result_returned():
    shown = []
    assert follow(work([1, 2, 3]), shown.append) == shown == [1, 2, 3]
    assert follow(work([])) == []


def test_work_that_is_interrupted_while_it_is_shown_returns_what_it_has():
    def show(stage):
        if stage == 3:
            raise KeyboardInterrupt

    assert follow(work([1, 2, 3, 4]), show) == [1, 2]


def test_work_that_has_nothing_yet_is_interrupted():
    def show(stage):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(work([1]), show)


def test_what_work_raises_is_raised():
    def broken():
        yield 1
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        follow(broken())
