"""Flags between a stream and the host; a thread is the stream."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from dspark_kernels.stream_flags import CallerStream, FlagTimeout, StreamFlags, ThreadStream

COUNT = 3


@pytest.fixture
def words() -> torch.Tensor:
    return torch.zeros(2 * COUNT, dtype=torch.int32)


@pytest.fixture
def stream(words: torch.Tensor) -> Iterator[ThreadStream]:
    stream = ThreadStream(words, patience=5.0)
    yield stream
    stream.close()


def test_the_stream_waits_for_each_answer_and_goes_on(
    words: torch.Tensor, stream: ThreadStream
) -> None:
    """Three rounds, as a graph that is replayed: the same operations, and no flag is left over."""
    flags, told, seen = StreamFlags(words, stream), [], []
    for _ in range(3):
        for flag in range(COUNT):
            stream.run(lambda flag=flag: told.append(("before", flag)))
            flags.ask(flag)
            flags.await_answer(flag)
            stream.run(lambda flag=flag: told.append(("after", flag)))
        for flag in range(COUNT):
            assert flags.is_asked(flag, 5.0)
            seen.append(list(told))  # nothing behind the wait has run
            flags.answer(flag)
    stream.close()
    once = [(when, flag) for flag in range(COUNT) for when in ("before", "after")]
    assert told == 3 * once
    assert [len(each) for each in seen] == list(range(1, 18, 2))
    assert words.tolist() == [0] * 2 * COUNT and not stream.failures


def test_what_is_not_asked_is_not_waited_for_long(
    words: torch.Tensor, stream: ThreadStream
) -> None:
    flags = StreamFlags(words, stream)
    begin = time.monotonic()
    assert not flags.is_asked(1, 0.05)
    assert time.monotonic() - begin < 2.0


def test_a_cancel_ends_every_wait(words: torch.Tensor, stream: ThreadStream) -> None:
    """Those under way and those to come; then all begins anew."""
    flags, ended = StreamFlags(words, stream), threading.Event()
    for flag in range(COUNT):
        flags.ask(flag)
        flags.await_answer(flag)
    stream.run(ended.set)
    assert flags.is_asked(0, 5.0)
    flags.cancel()
    assert ended.wait(5.0) and not flags.is_asked(1, 5.0)
    flags.reset()
    flags.ask(2)
    assert flags.is_asked(2, 5.0)


def test_a_stream_that_nobody_answers_says_so(words: torch.Tensor) -> None:
    flags = StreamFlags(words, CallerStream(words, patience=0.02))
    flags.ask(0)
    with pytest.raises(FlagTimeout, match=r"within 0\.02 s"):
        flags.await_answer(0)
