"""Kinds of tokens are told apart in every palette: by everyone, with few colours or with none."""

from itertools import combinations

import numpy as np
import pytest
from rich.color import ColorSystem
from textual.color import Color

from dspark_tui.themes import DARK, LIGHT

# Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB.
SIGHT = {
    "full": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
OF_SPANS = ("text-success", "text-error", "foreground")
OF_BARS = ("text-success", "text-error", "text-warning", "foreground-muted")
NOTICED = 2.3  # a difference of CIE 1976 that is just seen
WORDS = ("capital", "Lyon", "Paris", "thought")
PARIS = (("The", ([" capital"], [" Lyon"], " Paris")), {"thinking": ("A thought",)})


def linear(color: Color) -> np.ndarray:
    """WCAG 2 and sRGB."""
    parts = np.array(color.rgb) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    """CIE 1976 of linear RGB, D65."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ np.clip(light, 0.001, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: Color, other: Color) -> float:
    """WCAG 2."""
    weights = [0.2126, 0.7152, 0.0722]
    dark, light = sorted(linear(color) @ weights for color in (one, other))
    return (light + 0.05) / (dark + 0.05)


def variables(theme) -> dict[str, Color]:
    found = theme.to_color_system().generate()
    names = {*OF_SPANS, *OF_BARS, "text-primary", "text-accent", "background", "surface", "panel"}
    return {name: Color.parse(found[name]) for name in sorted(names)}


@pytest.mark.parametrize("theme", [DARK, LIGHT], ids=lambda theme: theme.name)
@pytest.mark.parametrize("sight", SIGHT)
def test_colours_of_spans_and_bars_differ_however_one_sees(theme, sight):
    colors = variables(theme)
    seen = {name: lab(np.array(SIGHT[sight]) @ linear(color)) for name, color in colors.items()}
    for names, times in ((OF_SPANS, 8), (OF_BARS, 6)):
        for one, other in combinations(names, 2):
            difference = np.linalg.norm(seen[one] - seen[other])
            assert difference >= times * NOTICED, f"{one} and {other}: {difference:.0f}"


@pytest.mark.parametrize("theme", [DARK, LIGHT], ids=lambda theme: theme.name)
@pytest.mark.parametrize("behind", ["background", "surface"])
def test_every_text_has_the_contrast_of_wcag(theme, behind):
    colors = variables(theme)
    for name in {*OF_SPANS, *OF_BARS, "text-primary", "text-accent"}:
        assert contrast(colors[name], colors[behind]) >= 4.5, name


@pytest.fixture
def told(open_chat, script):
    def start(**rest):
        (first, *steps), thinking = PARIS
        return open_chat(script(first, *steps, **thinking), **rest)

    return start


@pytest.mark.parametrize("theme", [DARK, LIGHT], ids=lambda theme: theme.name)
async def test_kinds_are_readable_and_different_in_both_views(told, theme):
    async with told() as chat:
        chat.app.theme = theme.name
        await chat.asked_and_answered("Go")
        for _ in range(2):
            await chat.until_shown("Lyon")
            await chat.pilot.pause()
            styles = {word: chat.style(word) for word in WORDS}
            for word, style in styles.items():
                front, back = (Color.from_rich_color(each) for each in (style.color, style.bgcolor))
                assert contrast(front, back) >= 4.5, word
            assert len({signs(style) for style in styles.values()}) == len(WORDS)
            await chat.pilot.press("ctrl+t")


def signs(style) -> tuple[bool, ...]:
    """What is left without colours."""
    return tuple(bool(each) for each in (style.underline, style.strike, style.italic, style.bold))


async def test_without_colours_the_kinds_are_told_apart_by_lines(told, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    async with told() as chat:
        await chat.asked_and_answered("Go")
        await chat.until_shown("Lyon")
        styles = {word: chat.style(word) for word in WORDS}
        for strip in chat.app.screen._compositor.render_strips():
            for segment in strip:
                for color in (segment.style.color, segment.style.bgcolor):
                    grey = color.get_truecolor() if color else None
                    assert grey is None or max(grey) - min(grey) <= 1, segment
        assert len({signs(style) for style in styles.values()}) == len(WORDS)
        assert styles["capital"].underline and styles["Lyon"].strike


async def test_in_sixteen_colours_no_text_vanishes(told):
    """As over ssh with TERM=xterm, where Rich takes the nearest of them."""
    async with told() as chat:
        await chat.asked_and_answered("Go")
        for theme in (DARK, LIGHT):
            chat.app.theme = theme.name
            for _ in range(2):
                await chat.pilot.pause()
                for strip in chat.app.screen._compositor.render_strips():
                    for segment in strip:
                        if segment.text.strip() and segment.style.color:
                            assert_is_seen(segment)
                await chat.pilot.press("ctrl+t")


def assert_is_seen(segment) -> None:
    style = segment.style
    front, back = (
        each.downgrade(ColorSystem.STANDARD).number for each in (style.color, style.bgcolor)
    )
    is_border = all(
        character == " " or "\u2500" <= character < "\u25a0" for character in segment.text
    )
    assert front != back or is_border, segment
