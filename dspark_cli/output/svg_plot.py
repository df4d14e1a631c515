"""Plots as inline SVG, without a library or a network: bars, lines, stacked bars."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 24, 34
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe and Ito
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 3", "10 4")  # so that colour is never alone
LINE = 15  # height of a line of text
CHARACTER = 7  # width of one
TICKS = HEIGHT - BOTTOM + 14
ROW = 26  # height of a stacked bar
NAMES = 150  # width of its label


@dataclass(frozen=True, slots=True)
class Scale:
    """A value's place on an axis, both ends included."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def bar_plot(
    groups: Sequence[str], series: Mapping[str, Sequence[float]], y_title: str, line: float
) -> str:
    """One bar for each series in each group; a dashed line at `line`."""
    top = max([line, *(v for values in series.values() for v in values)]) * 1.1
    y = Scale(0.0, top, HEIGHT - BOTTOM, TOP)
    width = (WIDTH - LEFT - RIGHT) / max(len(groups), 1)
    bar = width * 0.8 / max(len(series), 1)
    parts = _y_axis(y, sorted({*round_ticks(top), line}), y_title)
    for place, group in enumerate(groups):
        parts.append(_text(LEFT + width * (place + 0.5), TICKS, group, "middle"))
        for number, values in enumerate(series.values()):
            x = LEFT + width * place + width * 0.1 + bar * number
            value = values[place]
            parts.append(
                f'<rect x="{x:.1f}" y="{y(value):.1f}" width="{bar * 0.92:.1f}" '
                f'height="{y(0) - y(value):.1f}" fill="{_colour(number)}"/>'
            )
            parts.append(_text(x + bar * 0.46, y(value) - 3, f"{value:.2f}", "middle"))
    parts.append(_line(LEFT, y(line), WIDTH - RIGHT, y(line), "4 4"))
    return _with_legend(parts, list(series), HEIGHT)


def line_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    x_title: str,
    y_title: str,
    *,
    has_diagonal: bool = False,
    x_range: tuple[float, float] | None = None,
) -> str:
    """Points joined by lines; y from 0 to 1. The diagonal is where predicted equals observed."""
    xs = [x for points in curves.values() for x, _ in points] or [0.0, 1.0]
    low, high = x_range or (min(xs), max(xs))
    x = Scale(low, high, LEFT + 8, WIDTH - RIGHT - 8)
    y = Scale(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    parts = _y_axis(y, round_ticks(1.0), y_title)
    ticks = (
        sorted(set(xs)) if len(set(xs)) <= 16 and x_range is None else [low, (low + high) / 2, high]
    )
    parts += [_text(x(tick), TICKS, f"{tick:g}", "middle") for tick in ticks]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, TICKS + LINE, x_title, "middle"))
    if has_diagonal:
        parts.append(_line(x(0), y(0), x(1), y(1), "4 4"))
    for number, points in enumerate(curves.values()):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{_colour(number)}" stroke-width="2" '
            f'stroke-dasharray="{DASHES[number % len(DASHES)]}"/>'
        )
        parts += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.2" fill="{_colour(number)}"/>'
            for a, b in points
        ]
    return _with_legend(parts, list(curves), HEIGHT)


def stacked_plot(
    rows: Mapping[str, Sequence[float]], parts_of: Sequence[str], unit: str, line: float | None
) -> str:
    """A horizontal bar for each row, made of parts; a dashed line at `line` across all."""
    longest = max([line or 0.0, *(sum(values) for values in rows.values())]) * 1.12 or 1.0
    x = Scale(0.0, longest, NAMES, WIDTH - RIGHT)
    drawn, height = [], TOP + ROW * len(rows) + LINE
    for place, (name, values) in enumerate(rows.items()):
        top, start = TOP + ROW * place, 0.0
        drawn.append(_text(NAMES - 8, top + ROW / 2 + 3, name, "end"))
        for number, value in enumerate(values):
            drawn.append(
                f'<rect x="{x(start):.1f}" y="{top + 3}" width="{x(value) - x(0):.1f}" '
                f'height="{ROW - 6}" fill="{_colour(number)}"/>'
            )
            start += value
        drawn.append(_text(x(start) + 4, top + ROW / 2 + 3, f"{start:.2f} {unit}", "start"))
    if line is not None:
        drawn.append(_line(x(line), TOP, x(line), TOP + ROW * len(rows), "4 4"))
        drawn.append(_text(x(line), TOP - 6, f"floor {line:.2f} {unit}", "middle"))
    return _with_legend(drawn, parts_of, height)


def round_ticks(top: float) -> list[float]:
    """From 0 to at most `top`, at most six, in steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(top / 5))
    step = next(each for each in (power, 2 * power, 5 * power, 10 * power) if each >= top / 5)
    return [round(step * place, 12) for place in range(math.floor(top / step + 1e-9) + 1)]


def _y_axis(y: Scale, ticks: Sequence[float], title: str) -> list[str]:
    lines = [
        f'<line x1="{LEFT}" y1="{y(t):.1f}" x2="{WIDTH - RIGHT}" y2="{y(t):.1f}" class="grid"/>'
        for t in ticks
    ]
    labels = [_text(LEFT - 6, y(t) + 3, f"{t:.3g}", "end") for t in ticks]
    return [*lines, *labels, _text(4, 11, title, "start")]


def _with_legend(parts: Sequence[str], names: Sequence[str], height: float) -> str:
    """The names below, in as many lines as they take."""
    drawn, x, y = list(parts), float(LEFT), height + LINE
    for number, name in enumerate(names):
        width = 28 + CHARACTER * len(name)
        if x + width > WIDTH and x > LEFT:
            x, y = float(LEFT), y + LINE
        drawn.append(
            f'<rect x="{x:.0f}" y="{y - 9:.0f}" width="10" height="10" fill="{_colour(number)}"/>'
        )
        drawn.append(_text(x + 14, y, name, "start"))
        x += width
    return (
        f'<svg viewBox="0 0 {WIDTH} {y + 6:.0f}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(drawn)}</svg>'
    )


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, dash: str) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'class="mark" stroke-dasharray="{dash}"/>'
    )
