"""The meaning of the marks: each word is shown in the style it explains."""

from textual.content import Content
from textual.reactive import reactive, var
from textual.widget import Widget

from dspark.chat.token_spans import LEGEND, Mark
from dspark_tui.token_styles import SHADES, View, style_of
from dspark_tui.widgets.status_bar import Status

GAP = ("  ", "")


class Legend(Widget):
    view: reactive[View] = reactive(View())
    has_drafter: reactive[bool] = reactive(True)
    status: var[Status] = var(Status())

    def watch_status(self, old: Status, new: Status) -> None:
        """Figures change with every frame, the legend does not."""
        if old.tells_rounds != new.tells_rounds:
            self.refresh()

    def render(self) -> Content:
        if not self.status.tells_rounds:
            return Content.styled("server: no draft information", "$foreground-muted")
        if not self.has_drafter:
            return Content.styled("plain decoding, no drafts", "$foreground-muted")
        variants = [legend(self.view, is_short) for is_short in (False, True)]
        fitting = [line for line in variants if line.cell_length <= self.content_size.width]
        return (fitting or variants[-1:])[0]


def legend(view: View, is_short: bool) -> Content:
    spans: list[tuple[str, str]] = []
    for kind, words in LEGEND.items():
        if kind != "rejected" or view.show_rejected:
            spans += [(words[is_short], style_of(Mark("", kind), view)), GAP]
    if not view.show_rejected and not is_short:
        spans += [("rejected hidden", "$foreground-muted"), GAP]
    if view.shading:
        spans += [*_ramp(view, is_short), GAP]
    return Content.assemble(*spans[:-1])


def _ramp(view: View, is_short: bool) -> list[tuple[str, str]]:
    """A scale of the head's confidence, from 0 to 1."""
    steps = range(0, SHADES + 1, 2 if is_short else 1)
    shades = [(" ", style_of(Mark("", "accepted", step / SHADES), view)) for step in steps]
    cells = [(text, style.replace(" underline", "")) for text, style in shades]
    if is_short:
        return cells
    return [("unsure ", "$foreground-muted"), *cells, (" sure", "$foreground-muted")]
