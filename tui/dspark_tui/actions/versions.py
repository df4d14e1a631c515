"""Other versions of what was said: edited prompts, answers written again or continued."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dspark.chat.shared_wording import GREEDY
from dspark_tui import wording
from dspark_tui.actions import chats
from dspark_tui.turn import ShownTurn
from dspark_tui.widgets.prompt_box import PromptBox
from dspark_tui.widgets.status_bar import Hint
from dspark_tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from dspark_tui.screens.chat import ChatScreen


@dataclass(frozen=True, slots=True)
class Editing:
    """What the box holds instead of a new prompt: this turn's prompt, or the beginning of its
    answer."""

    turn: ShownTurn
    part: Literal["prompt", "answer"]


def edit(screen: "ChatScreen", turn: ShownTurn | None, part: Literal["prompt", "answer"]) -> None:
    """Puts it into the box; Enter asks again."""
    if turn is None or not _may_rewind(screen):
        return
    box = screen.query_one(PromptBox)
    screen.editing = Editing(turn, part)
    box.border_title = wording.EDITING[part]
    if part == "prompt":
        box.put_prompt(turn.prompt)
    else:
        box.put(turn.turn.text)
    box.focus()


async def resend(screen: "ChatScreen", text: str) -> None:
    """The edited text, in place of what it was; that stays in the store as another version. Raises
    DSparkError for a file that cannot be attached."""
    editing = screen.editing
    assert editing is not None
    pastes = screen.query_one(PromptBox).pastes
    text = pastes.expand(text) if editing.part == "answer" else pastes.sent(text)
    screen.leave_editing()
    if not text.strip() or not _may_rewind(screen):
        return
    screen.query_one(PromptBox).clear()
    await _rewind(screen, editing.turn)
    if editing.part == "prompt":
        if not screen.shown:
            chats.retitle(screen, editing.turn.prompt, text)
        await screen.enqueue(text)
    else:
        await screen.enqueue(editing.turn.prompt, opening=text)
    screen.next_answer()


async def regenerate(screen: "ChatScreen", turn: ShownTurn | None) -> None:
    if turn is None or not _may_rewind(screen):
        return
    await _rewind(screen, turn)
    await screen.enqueue(turn.prompt)
    if screen.status.sampling == GREEDY:
        screen.say(Hint(wording.SAME_AGAIN))
    screen.next_answer()


async def show_version(screen: "ChatScreen", turn: ShownTurn, by: int) -> None:
    """The version of a turn before or after this one, with what was said after it."""
    chat, saved = screen.conversation.saved_id, turn.turn.saved_id
    if chat is None or saved is None or not _may_rewind(screen):
        return
    with chats.naming_failures(screen):
        ids = screen.store.versions(saved)
        at = ids.index(saved) + by if saved in ids else -1
        if not 0 <= at < len(ids):
            return
        place = screen.shown.index(turn)
        screen.store.show_version(ids[at])
        conversation = screen.store.load(chat)
        if conversation is None:
            return
        before = screen.shown[0].prompt
        await screen.query_one(Transcript).begin(keeps_this=False)
        conversation.system = screen.settings.system
        screen.conversation = conversation
        await chats.show(screen, conversation)
        if screen.shown:
            chats.retitle(screen, before, screen.shown[0].prompt)
        screen.choose(min(place, len(screen.shown) - 1))


def _may_rewind(screen: "ChatScreen") -> bool:
    if screen.phase != "ready" or screen.queue:
        screen.say(Hint(wording.WAIT_FOR_ANSWER))
        return False
    return True


async def _rewind(screen: "ChatScreen", to: ShownTurn) -> None:
    """Takes this turn and all after it from the conversation and the screen."""
    at = screen.shown.index(to)
    gone = screen.shown[at:]
    del screen.shown[at:]
    left = [each.turn for each in screen.shown]
    conversation = screen.conversation
    conversation.turns = [turn for turn in conversation.turns if turn in left]
    conversation.num_left_out = min(conversation.num_left_out, len(conversation.turns))
    transcript = screen.query_one(Transcript)
    for each in gone:
        await transcript.take_away(each.question, each.answer)
