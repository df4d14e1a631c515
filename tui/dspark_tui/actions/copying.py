"""Copying an answer or its code: by OSC 52, which works over ssh."""

from typing import TYPE_CHECKING

from dspark_tui import wording
from dspark_tui.turn import ShownTurn
from dspark_tui.widgets.rendered import code_blocks
from dspark_tui.widgets.status_bar import Hint

if TYPE_CHECKING:
    from dspark_tui.screens.chat import ChatScreen


def copy_answer(screen: "ChatScreen", turn: ShownTurn | None) -> None:
    """Without marks, thinking and rejected drafts."""
    copy(screen, turn.turn.text if turn else "", wording.COPIED)


def copy_code(screen: "ChatScreen", turn: ShownTurn | None, number: int) -> bool:
    """The block of code with this number, from 1 on; False if there is none."""
    blocks = code_blocks(turn.turn.text) if turn else []
    if not 1 <= number <= len(blocks):
        screen.say(Hint(wording.no_code(len(blocks))))
        return False
    copy(screen, blocks[number - 1].rstrip("\n"), wording.code_copied(number))
    return True


def copy(screen: "ChatScreen", text: str, said: str) -> None:
    if text:
        screen.app.copy_to_clipboard(text)
    screen.say(Hint(said if text else wording.NOTHING_TO_COPY))
