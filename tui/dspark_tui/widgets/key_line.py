"""The keys and their actions, as far as the width allows; clickable."""

from dataclasses import dataclass

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

GAP = "  "


@dataclass(frozen=True, slots=True)
class Key:
    """A key with a larger `worth` stays visible in narrower lines."""

    name: str
    meaning: str
    action: str
    worth: int

    def content(self) -> Content:
        return Content.from_markup(
            f"[@click={self.action}][$text-primary bold]{self.name}[/] {self.meaning}[/]"
        )


STOP = Key("Esc", "Stop", "screen.stop", 9)
TAKE_BACK = Key("Esc", "Take back", "screen.stop", 9)
HELP = Key("F1", "Help", "app.help", 8)
NEW = Key("^N", "New chat", "screen.new_chat", 6)
OLD = Key("^N", "Last chat", "screen.new_chat", 6)
ROUNDS = Key("F2", "Rounds", "screen.inspect_rounds", 4)
REJECTED = Key("^R", "Rejected", "screen.toggle_rejected", 4)
SHADING = Key("^T", "Shading", "screen.toggle_shading", 3)
COMMANDS = Key("^P", "Commands", "app.command_palette", 5)
QUIT = Key("^Q", "Quit", "app.quit", 7)


class KeyLine(Widget):
    keys: reactive[tuple[Key, ...]] = reactive[tuple[Key, ...]](())

    def render(self) -> Content:
        shown = [*self.keys]
        while len(shown) > 1 and _line(shown).cell_length > self.content_size.width:
            shown.remove(min(shown, key=lambda key: key.worth))
        return _line(shown)


def _line(keys: list[Key]) -> Content:
    return Content(GAP).join(key.content() for key in keys)
