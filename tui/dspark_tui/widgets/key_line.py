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
CHATS = Key("^B", "Chats", "screen.sidebar", 4)
ROUNDS = Key("F2", "Rounds", "screen.inspect_rounds", 4)
RENDERED = Key("^O", "Marks", "screen.toggle_rendered", 3)
REJECTED = Key("^R", "Rejected", "screen.toggle_rejected", 2)
SHADING = Key("^T", "Shading", "screen.toggle_shading", 1)
COMMANDS = Key("^P", "Commands", "app.command_palette", 5)
QUIT = Key("^Q", "Quit", "app.quit", 7)
OF_A_MESSAGE = (
    Key("Esc", "Back", "screen.leave_choice", 9),
    Key("E", "Edit", "screen.edit_chosen", 8),
    Key("R", "Regenerate", "screen.regenerate_chosen", 7),
    Key("F", "Fork", "screen.fork_chosen", 6),
    Key("C", "Copy", "screen.copy_answer", 5),
    Key("1-9", "Copy code", "screen.copy_code(1)", 2),
    Key("← →", "Versions", "screen.version(1)", 3),
    Key("F2", "Rounds", "screen.inspect_rounds", 1),
)

OF_THE_SIDEBAR = (
    Key("Esc", "Close", "screen.in_sidebar('close')", 12),
    Key("Enter", "Open", "screen.in_sidebar('take')", 11),
    Key("F2", "Rename", "screen.in_sidebar('rename')", 10),
    Key("Del", "Delete", "screen.in_sidebar('delete')", 9),
)
UNDO = Key("^Z", "Undo", "screen.in_sidebar('restore')", 10)
OF_A_TITLE = (
    Key("Esc", "Keep the old title", "screen.in_sidebar('close')", 9),
    Key("Enter", "Rename", "screen.in_sidebar('take')", 10),
)


def keys_of(
    *,
    of_sidebar: tuple[Key, ...],
    is_choosing: bool,
    is_answering: bool,
    has_queue: bool,
    comes_back: bool,
    has_drafter: bool,
) -> tuple[Key, ...]:
    """The keys that do something now; `of_sidebar`, if it has the keyboard."""
    if of_sidebar:
        return (*of_sidebar, HELP, QUIT)
    if is_choosing:
        return OF_A_MESSAGE
    stop = (STOP,) if is_answering else ()
    return (
        *((TAKE_BACK,) if has_queue else stop),
        HELP,
        OLD if comes_back else NEW,
        CHATS,
        *((ROUNDS, RENDERED, REJECTED, SHADING) if has_drafter else ()),
        COMMANDS,
        QUIT,
    )


class KeyLine(Widget):
    keys: reactive[tuple[Key, ...]] = reactive[tuple[Key, ...]](())

    def render(self) -> Content:
        shown = [*self.keys]
        while len(shown) > 1 and _line(shown).cell_length > self.content_size.width:
            shown.remove(min(shown, key=lambda key: key.worth))
        return _line(shown)


def _line(keys: list[Key]) -> Content:
    return Content(GAP).join(key.content() for key in keys)
