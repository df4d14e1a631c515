"""Server-sent events: right values are the examples of the HTML standard, section 9.2.6."""

import pytest

from dspark.chat.openai.sse import EventDecoder

# The examples' bodies, and the data of the events that the standard says they fire.
STANDARD = (
    (
        b"data: This is the first message.\n\n"
        b"data: This is the second message, it\ndata: has two lines.\n\n"
        b"data: This is the third message.\n\n",
        [
            "This is the first message.",
            "This is the second message, it\nhas two lines.",
            "This is the third message.",
        ],
    ),
    (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n"
        b"data:  third event\n\n",
        ["first event", "second event", " third event"],
    ),
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", ["YHOO\n+2\n10"]),
    (b"data\n\ndata\ndata\n\n", ["", "\n"]),
    (b"data:test\n\ndata: test\n\n", ["test", "test"]),
)


def decoded(*chunks: bytes) -> list[str]:
    decoder = EventDecoder()
    events = [event for chunk in chunks for event in decoder.feed(chunk)]
    return [event.data for event in [*events, *decoder.end()]]


@pytest.mark.parametrize(("body", "data"), STANDARD)
@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_the_standards_examples_however_they_are_split(body, data, line_end):
    body = body.replace(b"\n", line_end)
    assert decoded(body) == data
    assert decoded(*(bytes([byte]) for byte in body)) == data
    for place in range(len(body)):
        assert decoded(body[:place], body[place:]) == data


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_only_line_feeds_and_returns_end_a_line(mark):
    body = f"data: one{mark}two\n\n".encode()
    assert decoded(*(bytes([byte]) for byte in body)) == [f"one{mark}two"]


def test_a_byte_order_mark_opens_a_stream_and_is_text_anywhere_else():
    mark = "\ufeff".encode()
    assert decoded(mark[:1], mark[1:] + b"data: a\n\n") == ["a"]
    assert decoded(b"data: a\n\n" + mark + b"data: b\n\n") == ["a"]


def test_a_last_event_without_its_empty_line_counts():
    for end in (b"", b"\n", b"\r", b"\r\n"):
        assert decoded(b"data: a\n\ndata: b" + end) == ["a", "b"]


def test_names_of_events():
    decoder = EventDecoder()
    body = b'event: ping\ndata: 1\n\ndata: 2\n\nerror: {"message": "full"}\n\n'
    names = [(event.name, event.data) for event in decoder.feed(body)]
    assert names == [("ping", "1"), ("", "2"), ("error", '{"message": "full"}')]


def test_a_long_line_takes_time_in_proportion():
    """A decoder that searches a growing buffer again would take minutes here."""
    piece = b"x" * 64
    assert decoded(b"data: ", *[piece] * 100_000, b"\n\n") == ["x" * 6_400_000]
