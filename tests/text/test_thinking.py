"""What a model sets apart by marks is thinking, the rest is the answer; marks are in neither."""

import base64
import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from dspark.config import StopConfig
from dspark.events import Finished
from dspark.text.stream import TextCodec, TextStream
from tests.automaton import chain, write_automaton, write_byte_tokenizer
from tests.engine.pairs import open_pair

HARMONY = (
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|constrain|>",
)
THINK_TEMPLATE = "{{ messages }}{% if add_generation_prompt %}<think>\n</think>{% endif %}"


def codec_of(folder: Path, **settings: object) -> TextCodec:
    write_byte_tokenizer(folder, **settings)  # type: ignore[arg-type]
    codec = TextCodec.from_directory(folder)
    assert codec is not None
    return codec


@dataclass
class Read:
    answer: str
    thinking: str
    kinds: list[bool]  # of the pieces with text, thinking or not, without repetitions


def read(codec: TextCodec, text: str, prompt: str = "q", stops: tuple[str, ...] = ()) -> Read:
    """The written text token by token, whose pieces have to add up to what the end says."""
    ids = codec.encode(text)
    stream = TextStream(codec, stops, codec.encode(prompt))
    shown = {False: "", True: ""}
    kinds: list[bool] = []

    def show(piece: str) -> None:
        shown[stream.is_thinking] += piece
        if piece and kinds[-1:] != [stream.is_thinking]:
            kinds.append(stream.is_thinking)

    for token_id in ids:
        show(stream.push(token_id))
        if stream.is_stopped:
            break
    show(stream.finish())
    assert (shown[False], shown[True]) == (stream.answer, stream.thinking)
    return Read(stream.answer, stream.thinking, kinds)


CHANNELS = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello"
)


@pytest.mark.parametrize(
    ("written", "answer", "thinking"),
    [
        (CHANNELS, "Hello", "Hm."),
        (CHANNELS + "<|return|>", "Hello", "Hm."),
        ("<|channel|>final<|message|>Hi", "Hi", ""),
        ("<|channel|>analysis<|message|>cut off", "", "cut off"),
        ("Without any channel", "Without any channel", ""),
        ("<|message|>No channel", "No channel", ""),
        ("<|channel|>analysis", "", ""),
        ("<|channel|>final <|constrain|>json<|message|>{}", "{}", ""),
        (
            " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
            "",
            "{}",
        ),
        (
            "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
            "",
            "{}",
        ),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary"
            "<|message|>b<|end|><|start|>assistant<|channel|>final<|message|>c",
            "c",
            "a\n\nb",
        ),
        (" tool or not", " tool or not", ""),
        (" t", " t", ""),
    ],
)
def test_channels(tmp_path, written, answer, thinking):
    codec = codec_of(tmp_path, special=HARMONY)
    for prompt in ("<|start|>user<|message|>q<|end|><|start|>assistant", "q"):
        if written.startswith(" t") and prompt == "q":
            continue
        got = read(codec, written, prompt)
        assert (got.answer, got.thinking) == (answer, thinking)


def test_channels_opened_by_the_prompt(tmp_path):
    codec = codec_of(tmp_path, special=HARMONY)
    got = read(codec, "ab<|end|><|start|>assistant<|channel|>final<|message|>c", CHANNELS[:33])
    assert (got.answer, got.thinking) == ("c", "ab")


def test_channels_with_unknown_marks_end_a_header_behind_its_name(tmp_path):
    codec = codec_of(tmp_path, special=(*HARMONY, "<|x|>", "<|y|>"))
    written = CHANNELS.replace("<|channel|>final<|message|>", "<|x|>final<|y|>")
    assert read(codec, written).answer == "Hello"


PAIRS = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel>thought", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
]


@pytest.mark.parametrize("kind", ["special", "plain", "text"])
@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_thinking_between_marks(tmp_path, opening, closing, kind):
    names = [opening.removesuffix("thought"), closing]
    settings = {kind: names} if kind != "text" else {"chat_template": f"{names[0]} {closing}"}
    codec = codec_of(tmp_path, **settings)
    got = read(codec, f"{opening}\nHm, 中…\n{closing}\n\n Hello 日本\n")
    assert (got.answer, got.thinking) == (" Hello 日本\n", "Hm, 中…")
    assert got.kinds == [True, False]
    opened = read(codec, f"Hm\n\nso\n{closing}\n\nHi", f"q{opening}\n")
    assert (opened.answer, opened.thinking) == ("Hi", "Hm\n\nso")
    assert read(codec, f"{opening}\n\n{closing}\n\nHi").answer == "Hi"
    closed = read(codec, "  Hi", f"q{opening}\n\n{closing}\n\n")
    assert (closed.answer, closed.thinking) == ("  Hi", "")
    cut = read(codec, f"{opening}\nHm\n")
    assert (cut.answer, cut.thinking) == ("", "Hm")


def test_plain_marks_behind_the_answers_first_word_are_words(tmp_path):
    codec = codec_of(tmp_path, plain=("<think>", "</think>"))
    text = "The tag <think> opens, </think> closes."
    assert read(codec, text).answer == text
    assert read(codec, f"<think>a</think>{text}").answer == text


def test_marks_spelled_out_are_text_where_the_vocabulary_has_them_as_tokens(tmp_path):
    codec = codec_of(tmp_path, special=("<think>", "</think>"))
    spelled = [ord(c) for c in "<think>x</think>y"]
    stream = TextStream(codec, (), codec.encode("q"))
    assert "".join(map(stream.push, spelled)) + stream.finish() == "<think>x</think>y"


def test_without_marks_in_vocabulary_or_template_all_is_text(tmp_path):
    text = "<think>x</think>\n\n[THINK] ◁think▷ Here is my response: y"
    assert read(codec_of(tmp_path), text).answer == text


def test_an_answer_in_marks_of_its_own(tmp_path):
    codec = codec_of(tmp_path, chat_template="<think></think><answer></answer>")
    got = read(codec, "<think>\na\n</think>\n<answer>\nb</answer>")
    assert (got.answer, got.thinking) == ("b", "a")
    assert read(codec, "<answer>\nb <answer> c</answer>").answer == "b <answer> c"
    assert read(codec, "b <answer>c</answer>").answer == "b <answer>c</answer>"


def test_granite_thinks_in_sentences(tmp_path):
    opening, closing = "Here is my thought process:", "Here is my response:"
    codec = codec_of(tmp_path, chat_template=f"{opening} {closing}")
    got = read(codec, f"{opening}\n\nHere is it.\n\n{closing}\nHere is my answer")
    assert (got.answer, got.thinking) == ("Here is my answer", "Here is it.")
    assert read(codec, "Here is my answer").answer == "Here is my answer"


def test_stop_strings_are_looked_for_in_the_answer_alone(tmp_path):
    codec = codec_of(tmp_path, plain=("<think>", "</think>"))
    got = read(codec, "<think>a STOP b</think>\n\nc STOP d", stops=("STOP",))
    assert (got.answer, got.thinking) == ("c ", "a STOP b")
    got = read(codec, "<think>a</think>\n\nc", stops=("</think>",))
    assert (got.answer, got.thinking) == ("", "a")
    spelled = codec_of(tmp_path / "text", chat_template="<think></think>")
    got = read(spelled, "<think>a</think>\n\nc", stops=("</think>",))
    assert (got.answer, got.thinking) == ("", "a")


def test_what_is_said_makes_no_new_marks(tmp_path):
    codec = codec_of(tmp_path, special=HARMONY, plain=("<think>", "</think>"))
    known = set(codec.thinking._marks.known)
    read(codec, CHANNELS + " and much more", stops=("much<|end|>",))
    read(codec, "<think>word</think>words", stops=("words",))
    assert set(codec.marks.known) == known


def test_raw_text_has_its_marks(tmp_path):
    codec = codec_of(tmp_path, special=(*HARMONY, "<|x|>"))
    stream = TextStream(codec, (), None)
    ids = codec.encode(CHANNELS + "<|x|>")
    assert "".join(map(stream.push, ids)) + stream.finish() == CHANNELS


def test_any_cut_of_any_marks_loses_no_text(tmp_path):
    """Random sequences of marks and words: pieces add up, and no letter is lost or doubled."""
    marks = ("<think>", "</think>", "<answer>", "</answer>")
    for kind in ("special", "plain", "text"):
        template = {"chat_template": "".join(marks)}
        codec = codec_of(tmp_path / kind, **(template if kind == "text" else {kind: marks}))
        draw = random.Random(5)
        for _ in range(60):
            words = draw.choices([*marks, "\n", " ", "中", "a<", "b</thi"], k=12)
            got = read(codec, "".join(words))
            letters = [word[0] for word in words if word[0] in "中ab"]
            kept = [c for c in got.thinking + got.answer if c in "中ab"]
            assert [c for c in kept if c == "中"] == [c for c in letters if c == "中"]
            assert got.kinds in ([], [False], [True], [True, False])


def test_mistrals_own_tokenizer_file(tmp_path):
    """tekken.json alone: byte tokens with ranks, control tokens before them."""
    words = [*(bytes([byte]) for byte in range(256)), b"ab"]
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(word).decode(), "token_str": None}
        for rank, word in enumerate(words)
    ]
    names = ("<unk>", "<s>", "</s>", "[THINK]", "[/THINK]")
    special = [{"rank": i, "token_str": n, "is_control": True} for i, n in enumerate(names)]
    sizes = {"num_vocab_tokens": 257, "default_vocab_size": 262, "default_num_special_tokens": 5}
    settings = {"pattern": r"\p{L}+|\s+|[^\s\p{L}]+", "version": "v13", **sizes}
    content = {"config": settings, "vocab": vocabulary, "special_tokens": special}
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    codec = TextCodec.from_directory(tmp_path)
    assert codec is not None
    assert codec.encode("ab")[-1] == 5 + 256
    got = read(codec, "[THINK]ab 中[/THINK]日本")
    assert (got.answer, got.thinking) == ("日本", "ab 中")


def test_the_engine_tells_thinking_apart(tmp_path):
    words = (b"analysis", b"Hm.", b"assistant", b"Hello")
    marks = ("<|end|>", "<think>", "</think>")
    ids = write_byte_tokenizer(tmp_path, special=marks, words=words)
    follows = chain(
        ord("q"), ids["<think>"], ids[b"Hm."], ids["</think>"], ids[b"Hello"], ids["<|end|>"]
    )
    write_automaton(tmp_path, follows, 256 + len(ids), ids["<|end|>"])
    session = open_pair(tmp_path, None)
    *events, done = session.generate([ord("q")])
    assert isinstance(done, Finished)
    assert (done.text, done.thinking, done.reason) == ("Hello", "Hm.", "stop_token")
    pieces = [piece for event in events for piece in event.pieces if piece.text]
    assert [(piece.text, piece.is_thinking) for piece in pieces] == [
        ("Hm.", True),
        ("Hello", False),
    ]
    *_, cut = session.generate([ord("q")], stop=StopConfig(max_tokens=2))
    assert (cut.text, cut.thinking) == ("", "Hm.")
    *_, raw = session.generate([ord("q")], is_raw=True)
    assert (raw.text, raw.thinking) == ("<think>Hm.</think>Hello", "")


TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
ASKED = "{% if add_generation_prompt %}<assistant>"
SWITCHED_OFF = "{% if enable_thinking is defined and enable_thinking is false %}"
QWEN3 = TURNS + ASKED + SWITCHED_OFF + r"{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
QWEN3_5 = QWEN3.replace(
    "{% endif %}{% endif %}", r"{% else %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
QWEN3_THINKING = TURNS + ASKED + r"{{ '<think>\n' }}{% endif %}"  # DeepSeek-R1's ends so, too
WITHOUT_BREAK = TURNS + ASKED + "<think>{% endif %}"
NEVER_THINKS = TURNS + ASKED + "{% endif %}"


@pytest.mark.parametrize(
    ("template", "before"),
    [
        pytest.param(QWEN3, "<think>\n\n</think>\n\n", id="qwen3"),
        pytest.param(QWEN3_5, "<think>\n\n</think>\n\n", id="qwen3.5"),
        pytest.param(
            QWEN3_THINKING, "<think>\n\n</think>\n\n", id="qwen3-thinking and deepseek-r1"
        ),
        pytest.param(WITHOUT_BREAK, "<think></think>", id="without a break"),
        pytest.param(NEVER_THINKS, "", id="never thinks"),
    ],
)
def test_an_answer_that_is_continued_has_no_thinking_before_it(tmp_path, template, before):
    special = ("<think>", "</think>", "<end>")
    codec = codec_of(tmp_path, special=special, words=(b"\n\n",), chat_template=template)
    ids = codec.encode_begun([{"role": "user", "content": "Hi"}], "Twenty-")
    assert ids == codec.encode(f"<user>Hi<end><assistant>{before}Twenty-")
    stream = TextStream(codec, (), ids)
    pieces = [(stream.push(token_id), stream.is_thinking) for token_id in codec.encode("three")]
    assert not any(is_thinking for _, is_thinking in pieces)
    assert stream.finish() == "" and stream.answer == "three"
