"""Characters are whole and final however tokens cut them, and all of them are the text decoded."""

import random
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from dspark.text.characters import Characters, TokenTexts
from dspark.text.stream import TextCodec, TextStream
from tests.automaton import STAND_INS

SAMPLES = (
    "The quick brown fox, isn't it?  Two spaces.\n\n\ttabbed",
    "Zażółć gęślą jaźń — naïve café ﬁn",
    "中文字符和日本語のテキスト、한국어 문장",
    "ניקוד עִבְרִית וصباح الخير",
    "नमस्ते दुनिया မြန်မာ ไทย",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "a\u0301e\u0308 \u200b zero \ufeff \ufffd \ufffd\ufffd end",
)


def wrapped(core: Tokenizer) -> Any:
    core.add_special_tokens([AddedToken("<|s|>", normalized=False)])
    core.add_tokens([AddedToken("<t>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=core)


def random_cuts(draw: random.Random, size: int, longest: int) -> list[int]:
    cuts = [0]
    while cuts[-1] < size:
        cuts.append(min(cuts[-1] + draw.randint(1, longest), size))
    return cuts


def byte_level(draw: random.Random, text: str) -> tuple[Any, list[int]]:
    """Tokens of up to seven bytes that begin and end anywhere in a character."""
    raw = text.encode()
    cuts = random_cuts(draw, len(raw), 7)
    words = ["".join(STAND_INS[b] for b in raw[a:z]) for a, z in pairwise(cuts)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.decoder = decoders.ByteLevel()
    return wrapped(core), [vocabulary[word] for word in words]


def _pieces(draw: random.Random, text: str, byte_share: float) -> list[str]:
    """SentencePiece's pieces: stretches of characters, some of them as bytes."""
    text = "▁" + text.replace(" ", "▁")
    cuts = random_cuts(draw, len(text), 4)
    pieces: list[str] = []
    for a, z in pairwise(cuts):
        if draw.random() < byte_share and "▁" not in text[a:z]:
            pieces += [f"<0x{byte:02X}>" for byte in text[a:z].encode()]
        else:
            pieces.append(text[a:z])
    return pieces


def _of_pieces(pieces: list[str], decoder: Any, byte_fallback: bool) -> tuple[Any, list[int]]:
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    core = Tokenizer(models.BPE(vocabulary, [], byte_fallback=byte_fallback))
    core.decoder = decoder
    return wrapped(core), [vocabulary[piece] for piece in pieces]


def llama(draw: random.Random, text: str) -> tuple[Any, list[int]]:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = decoders.Strip(" ", 1, 0)
    return _of_pieces(_pieces(draw, text, 0.4), decoders.Sequence([*steps, strip]), True)


def gemma(draw: random.Random, text: str) -> tuple[Any, list[int]]:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return _of_pieces(_pieces(draw, text, 0.4), decoders.Sequence(steps), True)


def unigram(draw: random.Random, text: str) -> tuple[Any, list[int]]:
    return _of_pieces(_pieces(draw, text, 0.0), decoders.Metaspace(), False)


def word_pieces(draw: random.Random, text: str) -> tuple[Any, list[int]]:
    pieces: list[str] = []
    for word in text.split():
        cuts = random_cuts(draw, len(word), 3)
        pieces += [("##" if a else "") + word[a:z] for a, z in pairwise(cuts)]
    return _of_pieces(pieces, decoders.WordPiece(), False)


def end_of_words(draw: random.Random, text: str) -> tuple[Any, list[int]]:
    """openai-gpt: a word's last piece has a mark, which is the space before the next word."""
    pieces: list[str] = []
    for word in text.split():
        cuts = random_cuts(draw, len(word), 3)
        parts = [word[a:z] for a, z in pairwise(cuts)]
        pieces += [*parts[:-1], parts[-1] + "</w>"]
    return _of_pieces(pieces, decoders.BPEDecoder(), False)


def whole_words(draw: random.Random, text: str) -> tuple[Any, list[int]]:
    """No decoder at all: tokens are joined by spaces."""
    words = text.split()
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*words, "?"]))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    return wrapped(core), [vocabulary[word] for word in words]


class Opaque:
    """A tokenizer written in Python: nobody can tell the bytes of its tokens."""

    all_special_ids = (7,)

    def __init__(self, words: list[bytes]) -> None:
        self._words = words

    def decode(self, ids: list[int], **kwargs: object) -> str:
        return b"".join(self._words[i] for i in ids if i != 7).decode(errors="replace")


def opaque(draw: random.Random, text: str) -> tuple[Any, list[int]]:
    raw = text.encode()
    cuts = random_cuts(draw, len(raw), 7)
    words = [raw[a:z] for a, z in pairwise(cuts)]
    return Opaque([b""] * 8 + words), [8 + index for index in range(len(words))]


KINDS = [
    byte_level,
    llama,
    gemma,
    unigram,
    word_pieces,
    end_of_words,
    whole_words,
    opaque,
]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("sample", range(len(SAMPLES)))
def test_pushes_are_the_text_however_it_is_cut(
    make: Callable[[random.Random, str], tuple[Any, list[int]]], sample: int
) -> None:
    draw = random.Random(sample)
    for _ in range(6):
        tokenizer, ids = make(draw, SAMPLES[sample])
        texts = TokenTexts(tokenizer)
        for position in sorted(draw.choices(range(len(ids) + 1), k=4), reverse=True):
            ids.insert(position, min(texts.special_ids))
        characters, whole, shown = Characters(texts), texts.decode(ids), ""
        for token_id in ids:
            ahead = characters.copy()
            new = characters.push(token_id)
            assert new == ahead.push(token_id)
            shown += new
            assert whole.startswith(shown)
        assert shown + characters.finish() == whole
        if make in (byte_level, opaque):
            assert whole == SAMPLES[sample]


def test_broken_bytes_read_as_the_tokenizer_reads_them() -> None:
    """Any bytes at all, also those that are no UTF-8: the marks come where the decoder has them."""
    draw = random.Random(3)
    core = Tokenizer(models.BPE({STAND_INS[byte]: byte for byte in range(256)}, []))
    core.decoder = decoders.ByteLevel()
    texts = TokenTexts(wrapped(core))
    likely = [0x41, 0x80, 0xBF, 0xC2, 0xE0, 0xE4, 0xED, 0xA0, 0xF0, 0x9F, 0xF4, 0x8F, 0xFF]
    for _ in range(300):
        ids = draw.choices(likely, k=12)
        characters = Characters(texts)
        assert "".join(map(characters.push, ids)) + characters.finish() == texts.decode(ids)


def test_bytes_in_a_byte_fallback_run_survive_a_broken_neighbour() -> None:
    """The library's decoder gives up the whole run; what was shown is not taken back."""
    pieces = ["<0xE4>", "<0xB8>", "<0xAD>", "<0xE4>", "▁b"]
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer, ids = _of_pieces(pieces, decoder, True)
    characters = Characters(TokenTexts(tokenizer))
    assert "".join(map(characters.push, [ids[i] for i in (0, 1, 2, 0, 4)])) == "中\ufffd b"


def test_a_plain_added_token_and_rows_without_a_token() -> None:
    core = Tokenizer(models.BPE({STAND_INS[byte]: byte for byte in range(256)}, []))
    core.decoder = decoders.ByteLevel()
    tokenizer = wrapped(core)
    tokenizer.add_tokens(["日本", "é!"])
    texts = TokenTexts(tokenizer)
    for ids in ([65, 257, 66], [65, 258, 66, 259], [65, 9999, 66], [0xE4, 0xB8, 9999, 0xAD]):
        characters = Characters(texts)
        assert "".join(map(characters.push, ids)) + characters.finish() == texts.decode(ids)


@pytest.mark.parametrize("make", [byte_level, llama, unigram, opaque])
def test_the_cost_of_a_token_does_not_grow(make) -> None:
    """Runs of special tokens, of tokens without text and of cut characters."""
    tokenizer, ids = make(random.Random(0), "中 文 字 符" * 3)
    texts = TokenTexts(tokenizer)
    calls = 0
    sizes: list[int] = []
    decode = texts.decode

    def counted(ids):
        nonlocal calls
        calls += 1
        sizes.append(len(ids))
        return decode(ids)

    texts.decode = counted  # type: ignore[method-assign]
    characters = Characters(texts)
    for token_id in (*ids, *([min(texts.special_ids)] * 5000), *(ids * 200)):
        characters.push(token_id)
    assert calls <= 3 * 200 * (len(ids) + 1)
    assert max(sizes, default=0) <= 16


def test_ten_thousand_tokens_without_text_are_quick(tiny_chat_dir) -> None:
    codec = TextCodec.from_directory(tiny_chat_dir)
    assert codec is not None
    special = min(codec.texts.special_ids)
    broken = codec.encode("中")[0]
    seconds = {}
    for count in (1000, 16000):
        stream = TextStream(codec, ("STOP",), codec.encode("q"))
        started = time.process_time()
        for _ in range(count):
            stream.push(special)
            stream.push(broken)
        seconds[count] = time.process_time() - started
    assert seconds[16000] < 64 * seconds[1000]  # 16 when linear, 256 when quadratic
