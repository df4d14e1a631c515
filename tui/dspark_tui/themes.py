"""Two palettes. Every text colour has a contrast of at least 4.5 : 1 with its background. Blue and
orange, for kept and refused drafts, are told apart by those who see no red, green or blue, too."""

import os

from textual.theme import Theme


def _variables(muted: str, background: str, scrollbar: str) -> dict[str, str]:
    """Scrollbars without a separate track."""
    return {
        "foreground-muted": muted,
        "scrollbar": scrollbar,
        "scrollbar-background": background,
        "scrollbar-background-hover": background,
        "scrollbar-background-active": background,
        "scrollbar-corner-color": background,
    }


DARK = Theme(
    name="dspark-dark",
    dark=True,
    primary="#5b9dff",
    secondary="#8b93a7",
    accent="#c8a1ff",
    success="#2fa8ff",
    warning="#ffe14c",
    error="#ff5a1f",
    foreground="#e6e8ee",
    background="#14161b",
    surface="#1b1e25",
    panel="#222631",
    variables=_variables(muted="#98a0b0", background="#14161b", scrollbar="#323846"),
)
LIGHT = Theme(
    name="dspark-light",
    dark=False,
    primary="#2f6fd6",
    secondary="#5c6475",
    accent="#7a45c8",
    success="#0058d8",
    warning="#d89800",
    error="#c03c00",
    foreground="#1d2129",
    background="#fbfaf8",
    surface="#f2f0ec",
    panel="#e8e5df",
    variables=_variables(muted="#5f6673", background="#fbfaf8", scrollbar="#cfcbc3"),
)
LIGHT_ANSI_BACKGROUNDS = {"7", "15"}


def theme_for_terminal() -> Theme:
    """Many terminals give their background in COLORFGBG; the default is dark."""
    background = os.environ.get("COLORFGBG", "").rsplit(";", 1)[-1]
    return LIGHT if background in LIGHT_ANSI_BACKGROUNDS else DARK
