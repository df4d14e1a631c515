"""Curves drawn with characters, for a terminal."""

from collections.abc import Mapping, Sequence

MARKS = "●○▲△■□◆◇"
HEIGHT = 12
LABEL = 10  # columns of the vertical axis
COLUMNS = 56

Points = Sequence[tuple[float, float]]


def text_plot(curves: Mapping[str, Points], x_title: str, y_title: str) -> list[str]:
    """Points (x, y) of named curves. The x values stand at equal distances, the y axis begins at
    zero; where marks coincide, the first curve's is shown."""
    xs = sorted({x for points in curves.values() for x, _ in points})
    top = max((y for points in curves.values() for _, y in points), default=0.0) or 1.0
    step = max(COLUMNS // max(len(xs), 1), 1)
    grid = [[" "] * (step * len(xs)) for _ in range(HEIGHT + 1)]
    named = list(zip(curves.values(), MARKS * len(curves), strict=False))
    for points, mark in reversed(named):
        for x, y in points:
            grid[HEIGHT - round(HEIGHT * y / top)][step * xs.index(x) + step // 2] = mark
    lines = [f"{y_title}"]
    for row, cells in enumerate(grid):
        label = f"{top * (HEIGHT - row) / HEIGHT:.4g}" if row % 3 == 0 else ""
        lines.append(f"{label:>{LABEL - 2}} │{''.join(cells)}".rstrip())
    lines.append(f"{'':>{LABEL - 2}} └{'─' * step * len(xs)}")
    lines.append(" " * LABEL + "".join(f"{x:^{step}g}" for x in xs).rstrip() + f"  {x_title}")
    legend = "   ".join(f"{mark} {name}" for name, (_, mark) in zip(curves, named, strict=True))
    return [*lines, "", legend]
