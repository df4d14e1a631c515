"""The rounds of an answer: a ribbon of bars to walk along, and the inside of the chosen one."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.reactive import reactive
from textual.screen import ModalScreen
from textual.widgets import Static

from dspark.chat.conversation import Turn
from dspark.chat.round_view import (
    DraftRow,
    End,
    Outcome,
    draft_rows,
    end_of,
    host_seconds,
    own_token,
    rounds_of,
    tells_probs,
)
from dspark.chat.shared_wording import draft_price_words
from dspark.events import FinishReason, Round
from dspark_tui.screens.help import ROUNDS_TITLE, HelpScreen

BARS = "▁▂▃▄▅▆▇█"
END_STYLES: dict[End, str] = {
    "all accepted": "$text-success",
    "rejected": "$text-error",
    "schedule": "$text-warning",
    "no drafts": "$foreground-muted",
}
END_SIGNS: dict[End, str] = {  # below the bars, for those who see no colours
    "all accepted": "✓",
    "rejected": "✗",
    "schedule": "…",
    "no drafts": "·",
}
END_WORDS: dict[End, str] = {
    "all accepted": "every draft of the block was accepted",
    "rejected": "the model refused a draft",
    "schedule": "all verified drafts were accepted; the schedule left the rest out",
    "no drafts": "nothing was drafted",
}
FINISH_WORDS: dict[FinishReason, str] = {
    "stop_token": "The answer ends here: the model wrote its end mark.",
    "stop_string": "The answer ends here: it reached a stop text.",
    "max_tokens": "The answer ends here: it reached the maximum number of tokens.",
    "context": "The answer ends here: the context is full.",
    "cancelled": "The answer was stopped here.",
}
OUTCOME_STYLES: dict[Outcome, str] = {
    "accepted": "$text-success",
    "rejected": "$text-error",
    "behind a rejected one": "$text-error",
    "not verified": "$foreground-muted",
}
LEGEND = "height: accepted drafts · "
KEYS = "← → walk · PgUp PgDn ten · Home End · F1 help · Esc closes"
FEW_KEYS = "← → walk · F1 help · Esc closes"
NARROW = 72  # columns of text; below, words are short and the survival is left out
SHORT_OUTCOMES: dict[Outcome, str] = {
    "accepted": "accepted",
    "rejected": "rejected",
    "behind a rejected one": "behind it",
    "not verified": "unchecked",
}


class RoundsScreen(ModalScreen[None]):
    """Of one turn, which may still be growing."""

    CSS_PATH = "rounds.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f2,enter,q", "dismiss", "Close", show=False),
        Binding("f1", "help", "Help", show=False),
        Binding("left", "walk(-1)", "Before", show=False, priority=True),
        Binding("right", "walk(1)", "After", show=False, priority=True),
        Binding("pageup", "walk(-10)", "Ten before", show=False, priority=True),
        Binding("pagedown", "walk(10)", "Ten after", show=False, priority=True),
        Binding("home", "walk(-1000000)", "First", show=False, priority=True),
        Binding("end", "walk(1000000)", "Last", show=False, priority=True),
    ]
    chosen: reactive[int] = reactive(0, init=False)

    def __init__(self, turn: Turn, without_probs: str = "") -> None:
        """`without_probs` is said of a round that does not tell the probabilities of its drafts."""
        super().__init__()
        self._turn = turn
        self._without_probs = without_probs

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="rounds") as panel:
            panel.border_title = "Rounds"
            yield Static(id="ribbon")
            yield Static(id="legend")
            yield Static(id="inside")

    def on_mount(self) -> None:
        self.chosen = len(rounds_of(self._turn.events)) - 1
        self.call_after_refresh(self._draw)

    def on_resize(self) -> None:
        self._draw()

    def action_help(self) -> None:
        self.app.push_screen(HelpScreen(begins_with=ROUNDS_TITLE))

    def action_walk(self, by: int) -> None:
        last = len(rounds_of(self._turn.events)) - 1
        self.chosen = min(max(self.chosen + by, 0), last)

    def watch_chosen(self) -> None:
        self._draw()

    def _draw(self) -> None:
        rounds = rounds_of(self._turn.events)
        ribbon = self.query_one("#ribbon", Static)
        ribbon.update(_ribbon(rounds, self.chosen, ribbon.size.width or 1))
        event, width = rounds[self.chosen], ribbon.size.width
        note = "" if tells_probs(event) or not event.draft else self._without_probs
        self.query_one("#rounds").border_subtitle = FEW_KEYS if width < NARROW else KEYS
        self.query_one("#legend", Static).update(_legend(is_narrow=width < NARROW))
        finished = self._turn.finished if event is rounds[-1] else None
        end = FINISH_WORDS[finished.reason] if finished else ""
        self.query_one("#inside", Static).update(_inside(event, len(rounds), width, end, note))


def _ribbon(rounds: list[Round], chosen: int, width: int) -> Content:
    """The bars around the chosen one, as many as the width holds, and how each round ended."""
    start = min(max(0, chosen - width // 2), max(0, len(rounds) - width))
    longest = max(len(event.draft) for event in rounds) or 1
    bars, signs = [], []
    for at, event in enumerate(rounds[start : start + width], start=start):
        end, mark = end_of(event), " reverse" if at == chosen else ""
        bar = BARS[round(event.accepted / longest * (len(BARS) - 1))]
        bars.append((bar, END_STYLES[end]))
        signs.append((END_SIGNS[end], f"{END_STYLES[end]}{mark}"))
    return Content.assemble(*bars, "\n", *signs)


def _legend(*, is_narrow: bool) -> Content:
    names: dict[End, str] = {
        "all accepted": "whole block",
        "rejected": "refusal",
        "schedule": "schedule",
        "no drafts": "no drafts",
    }
    words = Content("  ").join(
        Content.styled(f"{END_SIGNS[end]} {names[end]}", END_STYLES[end]) for end in names
    )
    return words if is_narrow else Content.assemble((LEGEND, "$foreground-muted"), words)


def _inside(event: Round, count: int, width: int, end: str, note: str) -> Content:
    """`end`: why the answer ends with this round; `note`: what else is to be said."""
    rows, is_narrow = draft_rows(event), width < NARROW
    columns = _columns(rows, is_narrow=is_narrow)
    lines = [
        Content.assemble((f"Round {event.index + 1} of {count}: ", "bold"), _end_words(event)),
        Content(_counts(event)),
        Content(_times(event)),
        *(Content(line) for line in _experts(event)),
        Content(""),
    ]
    if rows:
        names = "".join(f"{name:>{len(name) + 2}}" for name in columns)
        head = f"    {_cells('draft', 'outcome', is_narrow=is_narrow)}{names}"
        lines.append(Content.styled(head, "$foreground-muted"))
    for at, row in enumerate(rows):
        values = {name: values[at] for name, values in columns.items()}
        lines.append(_row(row, values, is_narrow=is_narrow))
    if own := own_token(event):
        lines.append(Content.assemble((f"    {own}", "bold"), "  the model's own token"))
    for words, style in ((end, "$foreground"), (note, "$foreground-muted")):
        if words:
            lines += [Content(""), Content.styled(words, style)]
    return Content("\n").join(lines)


def _experts(event: Round) -> list[str]:
    """What a verified row cost where experts are routed, by which the schedule goes."""
    if not (event.expert_reads and event.expert_bytes):
        return []
    rows = event.verified + 1
    megabytes = event.expert_reads * event.expert_bytes / rows / 1e6
    far = f", {event.expert_far} from the SSD" if event.expert_far else ""
    line = f"{event.expert_reads} routed experts read{far}"
    line += f" · {megabytes:,.0f} MB for each of {rows} rows"
    if (left := len(event.draft) - event.verified) > 0:
        line += f"; the next would cost about that, and the schedule left {left} out"
    return [line]


def _end_words(event: Round) -> str:
    words = END_WORDS[end_of(event)]
    if event.is_parked and event.draft_cost:
        return f"{words}: {draft_price_words(event.draft_cost, event.draft_tokens)}"
    return words


def _columns(rows: list[DraftRow], *, is_narrow: bool) -> dict[str, list[float | None]]:
    """Those that have a value in any row."""
    columns = {
        "p(draft)": [row.draft_prob for row in rows],
        "p(model)": [row.target_prob for row in rows],
        "sure": [row.confidence for row in rows],
        "survival": [None if is_narrow else row.survival for row in rows],
    }
    return {name: values for name, values in columns.items() if any(v is not None for v in values)}


def _cells(text: str, outcome: str, *, is_narrow: bool) -> str:
    widths = (10, 9) if is_narrow else (12, 21)
    return f"{text:<{widths[0]}.{widths[0]}}  {outcome:<{widths[1]}}"


def _row(row: DraftRow, values: dict[str, float | None], *, is_narrow: bool) -> Content:
    text = f"#{row.token_id}" if row.text is None else row.text
    outcome = SHORT_OUTCOMES[row.outcome] if is_narrow else row.outcome
    shown = (
        f"{'' if value is None else f'{value:.0%}':>{len(name) + 2}}"
        for name, value in values.items()
    )
    return Content.assemble(
        (f"{row.position:2}  ", "$foreground-muted"),
        (_cells(text, outcome, is_narrow=is_narrow), OUTCOME_STYLES[row.outcome]),
        ("".join(shown), "$foreground-muted"),
    )


def _counts(event: Round) -> str:
    return f"{len(event.draft)} drafted, {event.verified} verified, {event.accepted} accepted"


def _times(event: Round) -> str:
    parts = {
        "draft": event.draft_seconds,
        "verify": event.verify_seconds,
        "accept": event.accept_seconds,
        "host": host_seconds(event),
    }
    return " · ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in parts.items())
