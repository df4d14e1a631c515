"""Promise 4: a draft is never a reason for a wrong, missing or repeated token."""

import threading
from dataclasses import replace
from itertools import pairwise

import pytest

from dspark.config import SamplingConfig, StopConfig
from dspark.errors import InputError
from dspark.events import Finished, PrefillProgress, Round
from dspark.text.stream import TextCodec, TextStream
from tests.engine.pairs import PROMPT, decode, golden, open_pair, request, scheduled


def finish(engine, ask) -> Finished:
    *_, last = engine.run([ask])
    assert isinstance(last, Finished)
    return last


def with_stop_token(engine, token):
    engine.target.spec = replace(engine.target.spec, stop_token_ids=frozenset([token]))
    return engine


@pytest.mark.parametrize("plain", [True, False])
def test_stop_token_ends_there_even_inside_the_accepted_drafts(plain):
    written = decode(golden("vanilla").engine, [request(max_tokens=60)])[0]
    for token in dict.fromkeys(written):
        engine = with_stop_token(golden("vanilla").engine, token)
        done = finish(engine, request(max_tokens=60, plain=plain))
        assert done.reason == "stop_token"
        assert done.token_ids == written[: written.index(token) + 1]


def test_ignored_stop_tokens_are_ordinary():
    engine = golden("vanilla").engine
    written = decode(engine, [request(max_tokens=30)])[0]
    ask = replace(request(), stop=StopConfig(max_tokens=30, ignore_stop_tokens=True))
    assert finish(with_stop_token(engine, written[5]), ask).token_ids == written


@pytest.mark.parametrize("max_tokens", [1, 2, 7, 40])
def test_max_tokens_is_exact(max_tokens):
    engine = golden("vanilla").engine
    done = finish(engine, request(max_tokens=max_tokens))
    assert (len(done.token_ids), done.reason) == (max_tokens, "max_tokens")


def test_pieces_are_the_answer_and_rounds_are_whole():
    events = list(golden("vanilla").engine.run([request(max_tokens=33)]))
    done = events[-1]
    assert isinstance(done, Finished)
    emitted = [p.token_id for e in events if not isinstance(e, Finished) for p in e.pieces]
    assert tuple(emitted) == done.token_ids
    rounds = [event for event in events if isinstance(event, Round)]
    assert [r.index for r in rounds] == list(range(len(rounds)))
    for earlier, later in pairwise(rounds):
        assert later.anchor == earlier.next
    for r in rounds:
        assert 0 <= r.accepted <= r.verified <= len(r.draft)
        assert [p.token_id for p in r.rejected] == list(r.draft[r.accepted : r.verified])
    assert done.stats.rounds == len(rounds)
    assert done.stats.tau == pytest.approx(sum(r.accepted + 1 for r in rounds) / len(rounds))


def test_context_end_is_reached_exactly(tiny_llama_dir, make_tiny_head):
    session = open_pair(tiny_llama_dir, make_tiny_head(tiny_llama_dir))
    limit = session.context_limit
    ask = request([5 + i % 50 for i in range(limit - 20)], 1000)
    done, plain = finish(session.engine, ask), finish(session.engine, replace(ask, plain=True))
    assert done.reason == plain.reason == "context"
    unlimited = finish(session.engine, replace(ask, stop=StopConfig(max_tokens=None)))
    assert (unlimited.reason, unlimited.token_ids) == ("context", done.token_ids)
    # the last token needs no place of its own: nothing follows it
    assert done.token_ids == plain.token_ids and len(done.token_ids) == 21


@pytest.mark.parametrize(
    ("prompt", "stop"),
    [
        ((), StopConfig()),
        ((1,) * 600, StopConfig()),
        ((1, 999), StopConfig()),
        ((-1,), StopConfig()),
        ((1,), StopConfig(max_tokens=0)),
    ],
)
def test_impossible_requests_are_refused(prompt, stop):
    session = golden("vanilla")
    with pytest.raises(InputError):
        list(session.generate(prompt, SamplingConfig(), stop))
    assert len(decode(session.engine, [request(max_tokens=5)])[0]) == 5


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}],
)
def test_impossible_sampling_is_refused(sampling):
    with pytest.raises(InputError):
        list(golden("vanilla").generate(PROMPT, SamplingConfig(**sampling)))


def test_cancel_keeps_what_was_written_and_leaves_the_engine_usable():
    session = golden("vanilla")
    whole = decode(session.engine, [request(max_tokens=200)])[0]
    events = []
    for event in session.generate(PROMPT, stop=StopConfig(max_tokens=200)):
        events.append(event)
        if isinstance(event, Round) and event.index == 3:
            thread = threading.Thread(target=session.cancel)
            thread.start()
            thread.join()
    done = events[-1]
    assert isinstance(done, Finished) and done.reason == "cancelled"
    assert sum(isinstance(event, Round) for event in events) == 4
    assert done.token_ids == whole[: len(done.token_ids)]
    assert decode(session.engine, [request(max_tokens=200)])[0] == whole


def test_cancel_during_prefill():
    session = golden("vanilla", prefill_chunk=10)
    events = []
    for event in session.generate(PROMPT * 8):
        events.append(event)
        session.cancel()
    assert isinstance(events[0], PrefillProgress) and events[0].pieces == ()
    assert isinstance(events[-1], Finished) and events[-1].reason == "cancelled"
    assert len(events) == 2


def test_leaving_early_does_not_disturb_the_next():
    session = golden("vanilla")
    whole = decode(session.engine, [request()])[0]
    for _ in session.generate(PROMPT):
        break
    assert decode(session.engine, [request()])[0] == whole


# -- text ------------------------------------------------------------------------------------------


@pytest.fixture
def codec(tiny_chat_dir) -> TextCodec:
    codec = TextCodec.from_directory(tiny_chat_dir)
    assert codec is not None
    return codec


TEXT = "naïve 😀 — 日本語\n\tdone"


@pytest.mark.parametrize("text", [TEXT, "", "a", "😀" * 5])
def test_split_characters_come_whole(codec, text):
    stream = TextStream(codec)
    parts = [stream.push(token_id) for token_id in codec.encode(text)]
    assert "\ufffd" not in "".join(parts)
    assert "".join(parts) + stream.finish() == text


def test_cut_character_is_shown_as_such_at_the_end(codec):
    ids = codec.encode("ok 😀")[:-1]
    stream = TextStream(codec)
    shown = "".join(stream.push(token_id) for token_id in ids)
    assert shown == "ok "
    assert shown + stream.finish() == codec.decode(ids)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("one STO two", ["STOP"], "one STO two"),
        ("aaab", ["aab"], "a"),
        ("x</s>y", ["</s>", "<"], "x"),
        ("end ST", ["STOP"], "end ST"),
        ("日本語", ["本"], "日"),
        ("nothing", ["", "zz"], "nothing"),
    ],
)
def test_stop_strings_are_never_shown_and_nothing_else_is_lost(codec, text, stops, expected):
    stream = TextStream(codec, stops)
    shown = ""
    for token_id in codec.encode(text):
        shown += stream.push(token_id)
        assert expected.startswith(shown)
        if stream.is_stopped:
            break
    assert shown + stream.finish() == expected


def test_preview_leaves_the_stream_alone(codec):
    ids = codec.encode(TEXT)
    stream, untouched = TextStream(codec), TextStream(codec)
    for token_id in ids:
        assert "".join(span.text for span in stream.preview(codec.encode("zz😀"))).endswith("zz😀")
        assert stream.push(token_id) == untouched.push(token_id)


def test_stop_string_in_an_answer(tiny_chat_dir, make_tiny_head):
    session = open_pair(tiny_chat_dir, make_tiny_head(tiny_chat_dir))
    prompt = session.encode_chat([{"role": "user", "content": "hello"}])
    *_, whole = session.generate(prompt, stop=StopConfig(max_tokens=60))
    assert isinstance(whole, Finished)
    stop = next(whole.text[i : i + 2] for i in range(8, 40) if whole.text[i : i + 2].isprintable())
    for plain in (True, False):
        *_, done = session.generate(
            prompt, stop=StopConfig(max_tokens=60, strings=(stop,)), plain=plain
        )
        assert isinstance(done, Finished)
        assert (done.text, done.reason) == (whole.text[: whole.text.index(stop)], "stop_string")


def test_scheduled_text_equals_plain_text(tiny_chat_dir, make_tiny_head):
    session = open_pair(tiny_chat_dir, make_tiny_head(tiny_chat_dir))
    prompt = session.encode_chat([{"role": "user", "content": "hello"}])
    ask = request(prompt, 50)
    plain = finish(session.engine, replace(ask, plain=True))
    assert finish(scheduled(session), ask).text == plain.text == session.decode(plain.token_ids)


def test_pieces_and_tail_are_the_text(tiny_chat_dir, make_tiny_head):
    session = open_pair(tiny_chat_dir, make_tiny_head(tiny_chat_dir))
    prompt = session.encode_chat([{"role": "user", "content": "hello"}])
    *_, whole = session.generate(prompt, stop=StopConfig(max_tokens=30))
    never = whole.text[-2:] + "a stop string that does not come"
    *events, done = session.generate(prompt, stop=StopConfig(max_tokens=30, strings=(never,)))
    shown = "".join(piece.text for event in events for piece in event.pieces)
    assert done.tail and shown + done.tail == done.text == whole.text
