"""Stop strings: found wherever tokens cut them, special tokens in them too, and never shown."""

import random
import time
from pathlib import Path

import pytest

from dspark.config import StopConfig
from dspark.events import Finished
from dspark.text.stops import StopMatcher
from dspark.text.stream import TextCodec, TextStream
from tests.automaton import chain, write_automaton, write_byte_tokenizer
from tests.engine.pairs import open_pair

SPECIAL = ("<|end|>", "<|eot|>", "<|eot_id|>")


@pytest.fixture
def codec(tmp_path: Path) -> TextCodec:
    write_byte_tokenizer(tmp_path, special=SPECIAL, plain=("<tool>",))
    codec = TextCodec.from_directory(tmp_path)
    assert codec is not None
    return codec


def written(codec: TextCodec, text: str, *stops: str) -> tuple[str, bool]:
    stream = TextStream(codec, stops, codec.encode("q"))
    shown = ""
    for token_id in codec.encode(text):
        shown += stream.push(token_id)
        if stream.is_stopped:
            break
    return shown + stream.finish(), stream.is_stopped


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("AB<|eot|>CD", ["<|eot|>"], "AB"),
        ("AB<|eot|>\nCD", ["<|eot|>\n"], "AB"),
        ("AB<|eot|>CD", ["<|eot|>\n"], None),
        ("AB\n<|eot|>CD", ["\n<|eot|>"], "AB"),
        ("A<|end|><|eot|>CD", ["<|end|><|eot|>"], "A"),
        ("A<|end|>x<|eot|>CD", ["<|end|><|eot|>"], None),
        ("AB<|eot_id|>CD", ["<|eot|>", "<|eot"], None),
        ("AB<tool>CD", ["<tool>"], "AB"),
        ("AB<tool>CD", ["B<to"], "A"),
        ("AB<|end|>CD", ["BC"], "A"),
        ("x日本<|end|>語y", ["本<|end|>語"], "x日"),
        ("The end<|eot|>", ["end<|eot|>!"], None),
    ],
)
def test_special_tokens_in_stop_strings(codec, text, stops, expected):
    shown, is_stopped = written(codec, text, *stops)
    if expected is None:
        assert not is_stopped
        expected = text
        for name in SPECIAL:
            expected = expected.replace(name, "")
    assert shown == expected


def test_raw_text_shows_no_special_token_for_being_named(codec):
    stream = TextStream(codec, ["<|eot|>x"], None)
    assert "".join(map(stream.push, codec.encode("A<|eot|>B"))) + stream.finish() == "AB"


def test_a_special_tokens_name_spelled_out_stops_too(codec):
    spelled = [ord(c) for c in "AB<|eot|>CD"]
    stream = TextStream(codec, ["<|eot|>"], codec.encode("q"))
    shown = ""
    for token_id in spelled:
        shown += stream.push(token_id)
        if stream.is_stopped:
            break
    assert (shown, stream.is_stopped) == ("AB", True)


def first_end(text: str, stops: list[str]) -> tuple[str, bool]:
    """By trying every end: the first at which a stop string ends, and of those the longest."""
    for end in range(1, len(text) + 1):
        sizes = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if sizes:
            return text[: end - max(sizes)], True
    return text, False


def test_any_cut_gives_the_same_text() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        text = "".join(draw.choices("aab日\n", k=draw.randint(0, 14)))
        stops = ["".join(draw.choices("aab日\n", k=draw.randint(1, 5))) for _ in range(2)]
        matcher, shown, rest = StopMatcher(stops), "", text
        while rest and not matcher.is_stopped:
            size = draw.randint(1, 4)
            part, rest = rest[:size], rest[size:]
            shown += matcher.push(part)
            assert first_end(text, stops)[0].startswith(shown)
        shown += "" if matcher.is_stopped else matcher.finish()
        assert (shown, matcher.is_stopped) == first_end(text, stops)


def test_a_very_long_stop_string_is_found_in_linear_time() -> None:
    seconds = {}
    for size in (2_000, 32_000):
        stop = "a" * size + "b"
        matcher = StopMatcher([stop])
        started = time.process_time()
        shown = "".join(matcher.push("a") for _ in range(2 * size)) + matcher.push("b")
        seconds[size] = time.process_time() - started
        assert (shown, matcher.is_stopped) == ("a" * size, True)
    assert seconds[32_000] < 64 * seconds[2_000]  # 16 when linear, 256 when quadratic


def test_a_stop_string_of_special_tokens_ends_an_answer(tmp_path):
    ids = write_byte_tokenizer(tmp_path, special=("<|end|>", "<|eot|>"))
    text = [ord("q"), ord("A"), ord("B"), ids["<|eot|>"], ord("C"), ids["<|end|>"]]
    write_automaton(tmp_path, chain(*text), 256 + len(ids), ids["<|end|>"])
    session = open_pair(tmp_path, None)
    *_, done = session.generate(text[:1], stop=StopConfig(strings=("<|eot|>",)))
    assert isinstance(done, Finished)
    assert (done.text, done.reason) == ("AB", "stop_string")
    assert done.token_ids == tuple(text[1:4])
