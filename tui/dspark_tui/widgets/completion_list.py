"""A small list above the box of what the prompt may go on with; Tab takes one."""

from collections.abc import Sequence

from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from dspark_tui.completion import Completion


class CompletionList(OptionList, can_focus=False):
    """The box keeps the keyboard."""

    def __init__(self) -> None:
        super().__init__(compact=True)
        self.offered: Sequence[Completion] = ()
        self.display = False

    def offer(self, offered: Sequence[Completion]) -> None:
        self.offered = offered
        self.display = bool(offered)
        self.clear_options()
        width = max((len(each.text) for each in offered), default=0) + 2
        self.add_options([Option(_line(each, width)) for each in offered])
        self.highlighted = 0 if offered else None

    def move(self, by: int) -> None:
        self.highlighted = ((self.highlighted or 0) + by) % len(self.offered)

    @property
    def chosen(self) -> Completion | None:
        return self.offered[self.highlighted or 0] if self.offered else None


def _line(offered: Completion, width: int) -> Content:
    words = offered.text.ljust(width) if offered.meaning else offered.text
    return Content.assemble(words, (offered.meaning, "$foreground-muted"))
