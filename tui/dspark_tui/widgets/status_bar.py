"""One line of figures; the narrower the terminal, the fewer words."""

from dataclasses import dataclass

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from dspark.chat.running_stats import NOTHING_YET
from dspark.chat.shared_wording import parked_words
from dspark.events import DecodeStats

FULL_CONTEXT = 0.9
HINT_STYLES = {False: "$text-accent", True: "$text-error"}
NO_COLOURS = "no colours"  # explained in the legend


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that the line shows."""

    model: str = ""
    place: str = ""
    stats: DecodeStats = NOTHING_YET
    context_tokens: int = 0
    context_limit: int = 0
    tells_rounds: bool = True
    sampling: str = ""


@dataclass(frozen=True, slots=True)
class Hint:
    """A notice shown for a few seconds instead of the figures."""

    text: str
    is_error: bool = False


class StatusBar(Widget):
    status: reactive[Status] = reactive(Status())
    has_drafter: reactive[bool] = reactive(True)
    hint: reactive[Hint | None] = reactive[Hint | None](None, layout=True)

    def render(self) -> Content:
        if self.hint is not None:
            return Content.styled(self.hint.text, HINT_STYLES[self.hint.is_error])
        lines = [_line(self.status, self.has_drafter, words) for words in (3, 2, 1, 0)]
        fitting = [line for line in lines if line.cell_length <= self.content_size.width]
        return (fitting or lines[-1:])[0]


def _line(status: Status, has_drafter: bool, words: int) -> Content:
    """`words`: 3 all, 2 short ones, 1 without the machine, 0 hardly any."""
    fields = [
        _model(status, words),
        *_figures(status, has_drafter, words),
        [(status.sampling, "$foreground-muted")] if words == 3 and status.sampling else [],
        _context(status, words),
    ]
    gap = ("  " if words == 0 else "   ", "")
    spans: list[tuple[str, str]] = []
    for field in filter(None, fields):
        spans += [*([gap] if spans else []), *field]
    return Content.assemble(*spans)


Field = list[tuple[str, str]]


def _model(status: Status, words: int) -> Field:
    if words == 0:
        return []
    place = [(f" {status.place}", "$foreground-muted")] if words >= 2 and status.place else []
    return [(status.model, "bold"), *place]


def _figures(status: Status, has_drafter: bool, words: int) -> list[Field]:
    stats = status.stats
    measured = stats.decode_seconds > 0
    rate = f"{stats.decode_tokens_per_second:.1f}" if measured else "–"
    figures = [[(rate, "bold"), (" tok/s", "$foreground-muted")]]
    if not status.tells_rounds:
        return [*figures, [(NO_COLOURS, "$foreground-muted")]]
    if not has_drafter:
        return [*figures, [("plain", "$foreground-muted")]]
    if stats.is_parked:
        return [*figures, [(parked_words(stats) if words == 3 else "parked", "$foreground-muted")]]
    tau = f"{stats.tau:.2f}" if measured else "–"
    verified = f"{stats.verified_per_round:.1f}" if measured else "–"
    figures.append([("τ ", "$foreground-muted"), (tau, "bold")])
    label = " verified per round" if words == 3 else " verified" if words else "v"
    figures.append([(verified, "bold"), (label, "$foreground-muted")])
    return figures


def _context(status: Status, words: int) -> Field:
    if not status.context_limit:
        return []
    is_full = status.context_tokens >= FULL_CONTEXT * status.context_limit
    label = [("context ", "$foreground-muted")] if words else []
    # The last token of a full context needs no position.
    used = f"{min(status.context_tokens, status.context_limit):,}"
    limit = f"{status.context_limit:,}"
    return [
        *label,
        (used, "$text-warning bold" if is_full else "bold"),
        (f"/{limit}", "$foreground-muted"),
    ]
