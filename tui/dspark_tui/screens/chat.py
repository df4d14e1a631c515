"""The chat's screen: what it shows, and its keys; what they do is in `actions`."""

from collections.abc import Sequence
from dataclasses import replace
from time import monotonic
from typing import ClassVar, Literal

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from dspark.chat.commands import parse_command
from dspark.chat.round_view import rounds_of
from dspark.errors import DSparkError
from dspark_tui import wording
from dspark_tui.actions import chats, commands, copying, races, versions
from dspark_tui.completion import Arguments, Completion, completions
from dspark_tui.editor import edited
from dspark_tui.messages import (
    CopyRequested,
)
from dspark_tui.screens.chat_turns import ChatTurns
from dspark_tui.screens.rounds import RoundsScreen
from dspark_tui.widgets.completion_list import CompletionList
from dspark_tui.widgets.key_line import KeyLine
from dspark_tui.widgets.legend import Legend
from dspark_tui.widgets.loading import LoadingPanel
from dspark_tui.widgets.prompt_box import PromptBox
from dspark_tui.widgets.sidebar import Sidebar
from dspark_tui.widgets.status_bar import Hint, Status, StatusBar
from dspark_tui.widgets.transcript import Transcript

Phase = Literal["loading", "failed", "ready", "answering"]
HINT_SECONDS = 4.0


class ChatScreen(ChatTurns):
    CSS_PATH = "chat.tcss"
    AUTO_FOCUS = "PromptBox"  # Textual's choice would be the hidden sidebar, and get early keys
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop"),
        Binding("f1", "app.help", "Help"),
        Binding("f2", "inspect_rounds", "Rounds"),
        Binding("f3", "race", "Race", show=False),
        Binding("f4", "copy_answer", "Copy"),
        Binding("ctrl+b", "sidebar", "Chats", priority=True),
        Binding("ctrl+g", "open_editor", "Editor", show=False),
        Binding("ctrl+n", "new_chat", "New chat"),
        Binding("ctrl+o", "toggle_rendered", "Markdown or marks"),
        Binding("ctrl+r", "toggle_rejected", "Rejected"),
        Binding("ctrl+t", "toggle_shading", "Shading"),
        Binding("alt+up", "choose(-1)", "Choose a message", priority=True),
        Binding("alt+down", "choose(1)", "Choose a message", priority=True),
        Binding("pageup", "scroll_page(-1)", "Scroll up", show=False, priority=True),
        Binding("pagedown", "scroll_page(1)", "Scroll down", show=False, priority=True),
    ]

    def compose(self) -> ComposeResult:
        yield self.worker
        with Horizontal(id="top"):
            yield Static("dspark", id="brand")
            yield Static(self.worker.backend.name, id="model", markup=False)
            yield Legend().data_bind(ChatScreen.view, ChatScreen.has_drafter, ChatScreen.status)
        with Horizontal(id="middle"):
            yield Sidebar(self.store)
            with Vertical():
                yield Transcript()
                yield LoadingPanel()
                yield CompletionList()
                yield PromptBox()
        yield StatusBar().data_bind(ChatScreen.status, ChatScreen.has_drafter, ChatScreen.hint)
        yield KeyLine().data_bind(ChatScreen.keys)

    async def on_mount(self) -> None:
        self.status = Status(model=self.worker.backend.name)
        box = self.query_one(PromptBox)
        box.focus()
        self.watch(self, "focused", self.name_keys, init=False)
        with chats.naming_failures(self):
            box.remember(*self.store.prompts())
        self._follow_phase(self.phase)
        self.worker.load()
        if self.store.notice:
            await self._notice(DSparkError(self.store.notice))
        if self._first_chat is not None:
            await chats.open_saved(self, self._first_chat)
        for prompt in self.settings.prompts:
            await self.enqueue(prompt)

    # Actions of the user

    @on(PromptBox.Changed)
    def offer_completions(self) -> None:
        box = self.query_one(PromptBox)
        before = "" if box.is_recalled else box.before_cursor
        with chats.naming_failures(self):
            self._offer(completions(before, self._arguments()))

    def _offer(self, offered: Sequence[Completion]) -> None:
        self.query_one(CompletionList).offer(offered)
        self.query_one(PromptBox).offers = bool(offered)

    def _arguments(self) -> Arguments:
        models = self.models
        return {
            "/model": models.names if models else tuple,
            "/load": lambda: [each.title for each in self.store.chats()],
        }

    @on(PromptBox.CompletionMoved)
    def move_completion(self, message: PromptBox.CompletionMoved) -> None:
        self.query_one(CompletionList).move(message.by)

    @on(PromptBox.CompletionTaken)
    @on(CompletionList.OptionSelected)
    def take_completion(self) -> None:
        if (chosen := self.query_one(CompletionList).chosen) is not None:
            self.query_one(PromptBox).complete(chosen.text, chosen.replaced)

    @on(PromptBox.Submitted)
    async def take_prompt(self, message: PromptBox.Submitted) -> None:
        box = self.query_one(PromptBox)
        command = parse_command(box.pastes.expand(message.text))
        try:
            if self.editing is not None:
                await versions.resend(self, message.text)
            elif command is not None:
                await commands.obey(self, command, message.text)
            else:
                await self._send(box.pastes.sent(message.text))
        except DSparkError as error:
            self.say(Hint(wording.in_one_line(error), is_error=True))

    async def _send(self, prompt: str) -> None:
        """Queues it, if it is not empty, and lets the queue go on."""
        if self.phase == "failed":
            self.phase = "loading"
            self.worker.load()
        box = self.query_one(PromptBox)
        box.clear()
        if prompt:
            box.remember(prompt)
            await self.enqueue(prompt)
        self.holds_queue = False
        self.next_answer()

    def action_open_editor(self) -> None:
        """The prompt in the user's own editor, pastes unfolded."""
        box = self.query_one(PromptBox)
        before = box.pastes.expand(box.text)
        try:
            after = edited(self.app, before)
        except DSparkError as error:
            self.say(Hint(wording.in_one_line(error), is_error=True))
        else:
            if after != before:
                box.replace_all(box.pastes.fold(after))
        box.focus()

    @on(PromptBox.Left)
    def leave(self) -> None:
        self.app.exit()

    @on(PromptBox.TakenBack)
    async def take_back_or_recall(self) -> None:
        if self.queue:
            await self.take_back()
        else:
            self.query_one(PromptBox).recall(-1)

    async def action_stop(self) -> None:
        if self.query_one(PromptBox).offers:
            self._offer(())
        elif self.editing is not None:
            self.leave_editing()
            self.query_one(PromptBox).wipe()
        elif self.queue:
            await self.take_back()
        elif self.phase == "answering":
            self.worker.stop_answer()

    def interrupt(self) -> None:
        """Ctrl+C without a selection: stops the answer, clears the box, quits."""
        prompt_box = self.query_one(PromptBox)
        if self.phase == "answering" and not self.worker.is_stopping:
            self.worker.stop_answer()
        elif prompt_box.text:
            self.leave_editing()
            prompt_box.wipe()
            self.say(Hint(wording.CLEARED))
        elif monotonic() < self.quits_until:
            self.app.exit()
        else:
            self.quits_until = monotonic() + HINT_SECONDS
            self.say(Hint(wording.QUIT_AGAIN))

    async def action_new_chat(self) -> None:
        await chats.new(self)

    def action_toggle_rejected(self) -> None:
        self.view = replace(self.view, show_rejected=not self.view.show_rejected)

    def action_toggle_shading(self) -> None:
        self.view = replace(self.view, shading=not self.view.shading)

    def action_toggle_rendered(self) -> None:
        self.view = replace(self.view, rendered=not self.view.rendered)
        self.say(Hint(wording.RENDERED if self.view.rendered else wording.MARKED))

    def action_copy_answer(self) -> None:
        copying.copy_answer(self, self.chosen or self.last)

    @on(CopyRequested)
    def copy_code(self, message: CopyRequested) -> None:
        copying.copy(self, message.text, wording.COPIED_CODE)

    def action_inspect_rounds(self) -> None:
        """Of the answer that is chosen or being written, or else of the last one."""
        turn = self.chosen or self.last
        if turn is None or not rounds_of(turn.turn.events):
            self.say(Hint(wording.NO_ROUNDS))
            return
        can_tell = self.info is not None and self.info.tells_probs
        if can_tell:  # asked for only once somebody looks: rounds take a little longer
            self.settings = replace(self.settings, probabilities=True)
        note = wording.PROBS_FROM_NEXT if can_tell else ""
        self.app.push_screen(RoundsScreen(turn.turn, note))

    def action_race(self) -> None:
        try:
            races.start(self)
        except DSparkError as error:
            self.say(Hint(wording.in_one_line(error), is_error=True))

    def action_scroll_page(self, pages: int) -> None:
        transcript = self.query_one(Transcript)
        transcript.scroll_relative(y=pages * transcript.size.height, animate=False)

    async def run_worker_for_model(self, name: str) -> None:
        try:
            await self.change_model(name)
        except DSparkError as error:
            self.say(Hint(wording.in_one_line(error), is_error=True))

    async def change_model(self, name: str) -> None:
        """The chat goes on with another model. Raises DSparkError."""
        if self.models is None:
            raise DSparkError(wording.NOT_CHANGEABLE)
        if self.phase == "answering" or not name:
            names = ", ".join(self.models.names())
            raise DSparkError(wording.WAIT_FOR_ANSWER if name else f"there are {names}")
        backend = self.models.open(name)
        self.worker.backend.close()
        self.worker.backend = backend
        self.call_after_refresh(self.garbage.collect_all)
        self.status = Status(model=backend.name)
        self.query_one("#model", Static).update(backend.name)
        self.phase = "loading"
        self.worker.load()

    # A chosen message

    def action_choose(self, by: int) -> None:
        """The message before or after the chosen one; after the last one the prompt has the
        keyboard again."""
        at = len(self.shown) if self.chosen is None else self.shown.index(self.chosen)
        if at + by >= len(self.shown):
            self.action_leave_choice()
        else:
            self.choose(max(at + by, 0))

    def choose(self, place: int) -> None:
        self.unmark_chosen()
        self.query_one(Sidebar).display = False  # which may hide the messages
        self.chosen = self.shown[place]
        self.chosen.question.add_class("chosen")
        self.chosen.answer.add_class("chosen")
        transcript = self.query_one(Transcript)
        transcript.focus(scroll_visible=False)
        transcript.release_anchor()
        transcript.scroll_to_widget(self.chosen.question, animate=False, top=True)
        self.name_keys()

    def action_leave_choice(self) -> None:
        self.unmark_chosen()
        self.query_one(PromptBox).focus()
        self.query_one(Transcript).anchor()
        self.name_keys()

    def unmark_chosen(self) -> None:
        if self.chosen is not None:
            self.chosen.question.remove_class("chosen")
            self.chosen.answer.remove_class("chosen")
            self.chosen = None

    def action_edit_chosen(self) -> None:
        turn = self.chosen
        self.action_leave_choice()
        versions.edit(self, turn, "prompt")

    async def action_regenerate_chosen(self) -> None:
        turn = self.chosen
        self.action_leave_choice()
        await versions.regenerate(self, turn)

    async def action_fork_chosen(self) -> None:
        turn = self.chosen
        self.action_leave_choice()
        if turn is not None:
            await chats.fork(self, turn)

    async def action_version(self, by: int) -> None:
        if self.chosen is not None:
            await versions.show_version(self, self.chosen, by)

    def action_copy_code(self, number: int) -> None:
        copying.copy_code(self, self.chosen or self.last, number)

    # The sidebar

    def action_sidebar(self) -> None:
        sidebar = self.query_one(Sidebar)
        if sidebar.display:
            self.close_sidebar()
        else:
            with chats.naming_failures(self):
                sidebar.open(self.conversation.saved_id)

    async def action_in_sidebar(self, action: str) -> None:
        """A click on one of the sidebar's keys."""
        await self.query_one(Sidebar).run_action(action)

    @on(Sidebar.KeysChanged)
    def name_keys_of_sidebar(self) -> None:
        self.name_keys()

    @on(Sidebar.Closed)
    def close_sidebar(self) -> None:
        self.query_one(Sidebar).display = False
        self.query_one(PromptBox).focus()

    @on(Sidebar.Chosen)
    async def open_chosen(self, message: Sidebar.Chosen) -> None:
        self.close_sidebar()
        await chats.open_saved(self, message.chat)

    @on(Sidebar.Renamed)
    def rename_chat(self, message: Sidebar.Renamed) -> None:
        chats.rename(self, message.chat, message.title)

    @on(Sidebar.Deleted)
    async def delete_chat(self, message: Sidebar.Deleted) -> None:
        await chats.delete(self, message.chat)

    @on(Sidebar.Restored)
    def restore_chat(self, message: Sidebar.Restored) -> None:
        chats.restore(self, message.chat)
