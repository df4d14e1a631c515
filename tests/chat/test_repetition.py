"""An answer that goes round in a loop is noticed, and nothing else is taken for one."""

import pytest

from dspark.chat.repetition import Repetition, repeated_stretch

VERSE = "The sun is the source of light, and the light is the source of the sun. "
TEXT = (
    "A spark is small. It is warm, too, and it is gone before one has looked at it twice; that is "
    "why nobody has ever kept one in a box, though many have tried to, some of them for years.\n"
)


@pytest.mark.parametrize("stretch", [VERSE, "ha ", "Line one.\nLine two.\n\n", "👩👧 ", TEXT])
def test_a_stretch_that_comes_again_and_again_is_a_loop(stretch):
    text = f"Once: {stretch * 60}"[: 500 + 5 * len(stretch)]
    again = repeated_stretch(text)
    assert len(again) == len(stretch) and again in stretch * 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT,
        VERSE * 3,
        f"{VERSE * 9}And so on.",
        "".join(f"{number}. The same line once more.\n" for number in range(40)),
        f"| a | b |\n|{'-' * 300}|{'-' * 300}",
        " " * 900,
        "no " * 12,
    ],
    ids=["empty", "prose", "three", "over", "counted", "table", "spaces", "few"],
)
def test_other_text_is_no_loop(text):
    assert repeated_stretch(text) == ""


def test_pieces_of_an_answer_are_watched_as_they_come():
    repetition = Repetition()
    looped = []
    for piece in [TEXT, *[VERSE] * 60, TEXT]:
        repetition.add(piece)
        looped.append(repetition.is_looping)
    assert looped == [False] * 4 + [True] * 57 + [False]
