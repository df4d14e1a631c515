"""Which chat is shown: a new one, one from the store, a fork of this one."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from dspark.chat import settings as chat_settings
from dspark.chat.conversation import Conversation, Turn
from dspark.chat.sessions.store import title_of
from dspark.chat.shared_wording import sampling_words
from dspark_tui import wording
from dspark_tui.turn import ShownTurn
from dspark_tui.widgets.answer import Answer
from dspark_tui.widgets.prompt_box import PromptBox
from dspark_tui.widgets.sidebar import Sidebar
from dspark_tui.widgets.status_bar import Hint, Status
from dspark_tui.widgets.transcript import Transcript, UserMessage

if TYPE_CHECKING:
    from dspark_tui.screens.chat_turns import ChatTurns


@contextmanager
def naming_failures(screen: "ChatTurns") -> Iterator[None]:
    """A file of chats that cannot be read or written is a line, not the end of the program."""
    try:
        yield
    except sqlite3.Error as error:
        screen.say(Hint(wording.store_failed(str(error)), is_error=True))


async def new(screen: "ChatTurns") -> None:
    """Sets the conversation aside; in an empty one, brings the last one back."""
    transcript = screen.query_one(Transcript)
    if not transcript.is_empty:
        await begin(screen)
    elif screen.aside is not None:
        (screen.conversation, screen.shown, status), screen.aside = screen.aside, None
        screen.hint = None
        show_figures(screen, status)
        await transcript.bring_back()
    screen.name_keys()
    screen.query_one(PromptBox).focus()


async def begin(screen: "ChatTurns") -> None:
    """An empty chat."""
    while screen.queue:
        await screen.take_back()
    if screen.turn is not None:
        screen.worker.stop_answer()
        screen.left_turn, screen.turn = screen.turn, None
        screen.phase = "ready"
    screen.leave_editing()
    keeps_this = bool(screen.conversation.turns or screen.left_turn)
    if keeps_this:
        screen.aside = screen.conversation, screen.shown, screen.status
        screen.say(Hint(wording.SET_ASIDE))
    screen.conversation, screen.shown = Conversation(screen.settings.system), []
    screen.holds_queue = False
    show_figures(screen, Status())
    await screen.query_one(Transcript).begin(keeps_this=keeps_this)
    screen.call_after_refresh(screen.garbage.collect_all)  # of the chat that is given up


async def open_saved(screen: "ChatTurns", chat: int) -> None:
    """Shows a chat of the store."""
    if chat == screen.conversation.saved_id:
        return
    with naming_failures(screen):
        conversation = screen.store.load(chat)
        if conversation is None:
            return
        stored, unanswered = screen.store.settings(chat), screen.store.unanswered(chat)
        screen.settings = chat_settings.from_json(stored, screen.given)
        if not screen.query_one(Transcript).is_empty:
            await begin(screen)
        screen.hint = None
        conversation.system = screen.settings.system
        screen.conversation = conversation
        await show(screen, conversation)
        show_settings(screen)
        if unanswered and not screen.query_one(PromptBox).text:
            screen.query_one(PromptBox).put_prompt(unanswered)


async def show(screen: "ChatTurns", conversation: Conversation) -> None:
    """Its turns, in an empty transcript."""
    screen.shown = [shown_turn(screen, turn, conversation) for turn in conversation.turns]
    widgets = [each for turn in screen.shown for each in (turn.question, turn.answer)]
    info, backend = screen.status, screen.worker.backend
    for turn in screen.shown:
        if turn.turn.finished is not None:
            refused = backend.info.refused_note if info.place else ""
            turn.answer.note = wording.end_note(turn.turn.finished, screen.has_drafter, refused)
    if widgets:
        await screen.query_one(Transcript).add(*widgets)
        screen.count(conversation.turns[-1])
    name_versions(screen)
    screen.name_keys()


def shown_turn(screen: "ChatTurns", turn: Turn, conversation: Conversation) -> ShownTurn:
    screen.turn_count += 1
    answer = Answer(turn, screen.view)
    short = screen.query_one(PromptBox).pastes.shown(turn.prompt)
    question = UserMessage(turn.prompt, short)
    return ShownTurn(screen.turn_count, turn, question, answer, conversation)


def name_versions(screen: "ChatTurns") -> None:
    """Says beside each prompt which of its versions is shown."""
    with naming_failures(screen):
        for turn in screen.shown:
            if turn.turn.saved_id is not None:
                ids = screen.store.versions(turn.turn.saved_id)
                if turn.turn.saved_id in ids:
                    turn.question.version = (ids.index(turn.turn.saved_id) + 1, len(ids))


async def fork(screen: "ChatTurns", turn: ShownTurn) -> None:
    """A chat of its own with everything up to that answer; this one stays as it is."""
    chat, leaf = screen.conversation.saved_id, turn.turn.saved_id
    if chat is None or leaf is None or turn.turn.finished is None:
        screen.say(Hint(wording.NOTHING_TO_FORK))
        return
    with naming_failures(screen):
        taken = {each.title for each in screen.store.chats()}
        copy = screen.store.fork(chat, leaf, wording.forked(screen.conversation.title, taken))
        await open_saved(screen, copy)
        screen.say(Hint(wording.FORKED))


async def delete(screen: "ChatTurns", chat: int) -> None:
    with naming_failures(screen):
        screen.store.delete(chat)
        if chat == screen.conversation.saved_id:
            await begin(screen)
        if screen.aside is not None and screen.aside[0].saved_id == chat:
            screen.aside = None
            screen.name_keys()
        refresh_sidebar(screen)
        screen.say(Hint(wording.DELETED))


def rename(screen: "ChatTurns", chat: int, title: str) -> None:
    with naming_failures(screen):
        screen.store.rename(chat, title)
        if chat == screen.conversation.saved_id:
            screen.conversation.title = title
        refresh_sidebar(screen)


def retitle(screen: "ChatTurns", before: str, after: str) -> None:
    """A chat that is called by its first prompt follows it to another version."""
    chat = screen.conversation.saved_id
    if chat is not None and screen.conversation.title == title_of(before):
        rename(screen, chat, title_of(after))


def restore(screen: "ChatTurns", chat: int) -> None:
    with naming_failures(screen):
        screen.store.restore(chat)
        refresh_sidebar(screen)


def refresh_sidebar(screen: "ChatTurns") -> None:
    sidebar = screen.query_one(Sidebar)
    if sidebar.display:
        sidebar.refresh_list()


def show_figures(screen: "ChatTurns", of: Status) -> None:
    tokens = of.context_tokens
    screen.status = replace(screen.status, stats=of.stats, context_tokens=tokens)


def show_settings(screen: "ChatTurns") -> None:
    """In the line of figures, and in the store."""
    if screen.status.place:
        own = screen.worker.backend.info.sampling
        words = sampling_words(screen.settings.sampling, own)
        screen.status = replace(screen.status, sampling=words)
    if screen.conversation.saved_id is not None:
        with naming_failures(screen):
            stored = chat_settings.as_json(screen.settings)
            screen.store.keep_settings(screen.conversation.saved_id, stored)
