"""The chat: handlers own the state, the worker only reports."""

from dataclasses import replace
from time import monotonic
from typing import ClassVar, Literal

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.reactive import reactive
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Static

from dspark.chat.ask import LeftOut, PendingAnswer
from dspark.chat.backend import ChatBackend, ChatSettings
from dspark.chat.commands import parse_command, unknown_command
from dspark.chat.control_characters import visible
from dspark.chat.conversation import Conversation, Turn
from dspark.chat.round_view import rounds_of
from dspark.chat.shared_wording import sampling_words
from dspark.errors import DSparkError
from dspark.events import Finished
from dspark_tui import wording
from dspark_tui.messages import AnswerEvent, AnswerFailed, BackendReady, LoadFailed, LoadStep
from dspark_tui.screens.rounds import RoundsScreen
from dspark_tui.token_styles import View
from dspark_tui.turn import ShownTurn
from dspark_tui.widgets import key_line
from dspark_tui.widgets.answer import Answer
from dspark_tui.widgets.key_line import Key, KeyLine
from dspark_tui.widgets.legend import Legend
from dspark_tui.widgets.loading import LoadingPanel
from dspark_tui.widgets.prompt_box import PromptBox
from dspark_tui.widgets.status_bar import Hint, Status, StatusBar
from dspark_tui.widgets.transcript import Notice, Remark, Transcript, UserMessage
from dspark_tui.worker import BackendWorker

Phase = Literal["loading", "failed", "ready", "answering"]
HINT_SECONDS = 4.0


class ChatScreen(Screen[None]):
    CSS_PATH = "chat.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop"),
        Binding("f1", "app.help", "Help"),
        Binding("f2", "inspect_rounds", "Rounds"),
        Binding("ctrl+n", "new_chat", "New chat"),
        Binding("ctrl+r", "toggle_rejected", "Rejected"),
        Binding("ctrl+t", "toggle_shading", "Shading"),
        Binding("pageup", "scroll_page(-1)", "Scroll up", show=False, priority=True),
        Binding("pagedown", "scroll_page(1)", "Scroll down", show=False, priority=True),
    ]

    view: reactive[View] = reactive(View())
    status: reactive[Status] = reactive(Status())
    hint: reactive[Hint | None] = reactive[Hint | None](None)
    has_drafter: reactive[bool] = reactive(True)
    phase: reactive[Phase] = reactive[Phase]("loading")
    turn: reactive[ShownTurn | None] = reactive[ShownTurn | None](
        None
    )  # the one that is being answered
    queue: reactive[tuple[ShownTurn, ...]] = reactive[tuple[ShownTurn, ...]](())
    keys: reactive[tuple[Key, ...]] = reactive[tuple[Key, ...]](())

    def __init__(self, backend: ChatBackend, settings: ChatSettings) -> None:
        super().__init__()
        self.settings = settings
        self.conversation = Conversation(settings.system)
        self.worker = BackendWorker(backend)
        self.turn_count = 0
        self.left_turn: ShownTurn | None = None  # of a chat set aside, which is being stopped
        self.aside: tuple[Conversation, Status] | None = None
        self.holds_queue = False  # after a stop or a failure, until Enter
        self.quits_until = 0.0
        self._hint_end: Timer | None = None

    def compose(self) -> ComposeResult:
        yield self.worker
        with Horizontal(id="top"):
            yield Static("dspark", id="brand")
            yield Static(self.worker.backend.name, id="model", markup=False)
            yield Legend().data_bind(ChatScreen.view, ChatScreen.has_drafter, ChatScreen.status)
        yield Transcript()
        yield LoadingPanel()
        yield PromptBox()
        yield StatusBar().data_bind(ChatScreen.status, ChatScreen.has_drafter, ChatScreen.hint)
        yield KeyLine().data_bind(ChatScreen.keys)

    async def on_mount(self) -> None:
        self.status = Status(model=self.worker.backend.name)
        self.query_one(PromptBox).focus()
        self._follow_phase(self.phase)
        self.worker.load()
        for prompt in self.settings.prompts:
            await self._enqueue(prompt)

    # Events of the backend

    @on(LoadStep)
    def show_load_step(self, message: LoadStep) -> None:
        self.query_one(LoadingPanel).show(message.step)

    @on(BackendReady)
    def become_ready(self, message: BackendReady) -> None:
        info = message.info
        self.has_drafter = info.has_drafter
        self.status = replace(
            self.status,
            model=visible(info.name),
            place=f"{info.device} {info.dtype}".strip(),
            context_limit=info.context_limit,
            tells_rounds=info.tells_rounds,
            sampling=sampling_words(self.settings.sampling, info.sampling),
        )
        self.phase = "ready"
        self._next_answer()

    @on(LoadFailed)
    async def show_load_failure(self, message: LoadFailed) -> None:
        self.phase = "failed"
        if self.queue:
            first, *rest = self.queue
            self.queue = tuple(rest)
            await self._give_back(first)
        await self._notice(message.error)

    @on(AnswerEvent)
    async def show_answer_event(self, message: AnswerEvent) -> None:
        turn, event = self._turn_numbered(message.turn), message.event
        if turn is None:
            return
        turn.conversation.take(turn.turn, event)
        if isinstance(event, Finished):
            await self._end_answer(turn, event)
        elif not isinstance(event, LeftOut):
            turn.write(event)
            if turn is self.turn:
                self._count(turn.turn)
        elif turn is self.turn:
            await self.query_one(Transcript).add(Remark(str(event)), before=turn.question)

    @on(AnswerFailed)
    async def show_answer_failure(self, message: AnswerFailed) -> None:
        turn = self._turn_numbered(message.turn)
        if turn is None:
            return
        turn.answer.note = "failed half-way"
        if turn is self.left_turn:
            self.left_turn = None
            return
        self.turn, self.phase = None, "ready"
        await self._give_back(turn)
        await self._notice(message.error)

    def _turn_numbered(self, number: int) -> ShownTurn | None:
        turns = (each for each in (self.turn, self.left_turn) if each is not None)
        return next((turn for turn in turns if turn.number == number), None)

    def _count(self, turn: Turn) -> None:
        tokens = turn.context_tokens
        used = self.status.context_tokens if tokens is None else tokens
        self.status = replace(self.status, stats=turn.stats, context_tokens=used)

    # Actions of the user

    @on(PromptBox.Submitted)
    async def take_prompt(self, message: PromptBox.Submitted) -> None:
        command = parse_command(message.text)
        if command is not None:
            self._obey(command, message.text)
            return
        if self.phase == "failed":
            self.phase = "loading"
            self.worker.load()
        self.query_one(PromptBox).clear()
        if message.text:
            await self._enqueue(message.text)
        self.holds_queue = False
        self._next_answer()

    def _obey(self, command: str, text: str) -> None:
        if command == "quit":
            self.app.exit()
            return
        if command == "unknown":
            self.say(Hint(unknown_command(text), is_error=True))
            return
        self.query_one(PromptBox).clear()
        self.app.call_later(self.app.run_action, "app.help")

    @on(PromptBox.Left)
    def leave(self) -> None:
        self.app.exit()

    @on(PromptBox.TakenBack)
    async def take_back(self) -> None:
        """Returns the newest queued prompt to the box."""
        if self.queue:
            *rest, newest = self.queue
            self.queue = tuple(rest)
            self.query_one(PromptBox).put_before(newest.prompt)
            await self.query_one(Transcript).take_away(newest.question, newest.answer)

    async def action_stop(self) -> None:
        if self.queue:
            await self.take_back()
        elif self.phase == "answering":
            self.worker.stop_answer()

    def interrupt(self) -> None:
        """Ctrl+C without a selection: stops the answer, clears the box, quits."""
        prompt_box = self.query_one(PromptBox)
        if self.phase == "answering" and not self.worker.is_stopping:
            self.worker.stop_answer()
        elif prompt_box.text:
            prompt_box.wipe()
            self.say(Hint(wording.CLEARED))
        elif monotonic() < self.quits_until:
            self.app.exit()
        else:
            self.quits_until = monotonic() + HINT_SECONDS
            self.say(Hint(wording.QUIT_AGAIN))

    async def action_new_chat(self) -> None:
        """Sets the conversation aside; in an empty one, brings the last one back."""
        transcript = self.query_one(Transcript)
        if transcript.is_empty:
            if self.aside is not None:
                (self.conversation, status), self.aside = self.aside, None
                self.hint = None
                self._show_figures(status)
                await transcript.bring_back()
        else:
            await self._begin_chat(transcript)
        self._name_keys()
        self.query_one(PromptBox).focus()

    async def _begin_chat(self, transcript: Transcript) -> None:
        while self.queue:
            await self.take_back()
        if self.turn is not None:
            self.worker.stop_answer()
            self.left_turn, self.turn = self.turn, None
            self.phase = "ready"
        keeps_this = bool(self.conversation.turns or self.left_turn)
        if keeps_this:
            self.aside = self.conversation, self.status
            self.say(Hint(wording.SET_ASIDE))
        self.conversation = Conversation(self.settings.system)
        self.holds_queue = False
        self._show_figures(Status())
        await transcript.begin(keeps_this=keeps_this)

    def _show_figures(self, of: Status) -> None:
        tokens = of.context_tokens
        self.status = replace(self.status, stats=of.stats, context_tokens=tokens)

    def action_toggle_rejected(self) -> None:
        self.view = replace(self.view, show_rejected=not self.view.show_rejected)

    def action_toggle_shading(self) -> None:
        self.view = replace(self.view, shading=not self.view.shading)

    def action_copy_answer(self) -> None:
        """Copy the last answer, without marks, thinking and rejected drafts."""
        text = self.turn.answer.text if self.turn else self.conversation.last_answer
        if text:
            self.app.copy_to_clipboard(text)
        self.say(Hint(wording.COPIED if text else wording.NOTHING_TO_COPY))

    def action_inspect_rounds(self) -> None:
        """Of the answer that is being written, or else of the last one."""
        turns = [self.turn.turn] if self.turn else self.conversation.turns[-1:]
        if turns and rounds_of(turns[0].events):
            self.app.push_screen(RoundsScreen(turns[0]))
        else:
            self.say(Hint(wording.NO_ROUNDS))

    def action_scroll_page(self, pages: int) -> None:
        transcript = self.query_one(Transcript)
        transcript.scroll_relative(y=pages * transcript.size.height, animate=False)

    def say(self, hint: Hint) -> None:
        """Shows one notice at a time, without covering text."""
        if self._hint_end is not None:
            self._hint_end.stop()
        self.hint = hint
        self._hint_end = self.set_timer(HINT_SECONDS, lambda: setattr(self, "hint", None))

    # Steps of a turn

    async def _enqueue(self, prompt: str) -> None:
        """Queues a prompt last; while the queue is held, first: it may be the corrected failed
        prompt."""
        self.turn_count += 1
        answer = Answer().data_bind(ChatScreen.view)
        question = UserMessage(prompt)
        turn = ShownTurn(self.turn_count, Turn(prompt), question, answer, self.conversation)
        is_loading = self.phase == "loading"
        answer.note = wording.WAITS_FOR_MODEL if is_loading else wording.WAITS_FOR_ANSWER
        before = self.queue[0].question if self.holds_queue and self.queue else None
        await self.query_one(Transcript).add(turn.question, answer, before=before)
        self.queue = (turn, *self.queue) if before else (*self.queue, turn)

    def _next_answer(self) -> None:
        if self.phase != "ready" or not self.queue:
            return
        if self.holds_queue:
            self.say(Hint(wording.still_queued(len(self.queue))))
            return
        self.turn, *rest = self.queue
        self.queue = tuple(rest)
        self.phase = "answering"
        self.turn.answer.note = "reading the prompt"
        messages = self.turn.conversation.with_prompt(self.turn.prompt)
        pending = PendingAnswer(self.worker.backend, messages, self.settings)
        self.worker.answer(self.turn.number, pending)

    async def _end_answer(self, turn: ShownTurn, event: Finished) -> None:
        turn.end(event, self.has_drafter, self.worker.backend.info.refused_note)
        if turn is self.left_turn:
            self.left_turn = None
            return
        self.turn, self.phase = None, "ready"
        if event.reason == "cancelled":
            self.holds_queue = True
            if not event.text:
                await self._give_back(turn)
        if event.stats.new_tokens:
            self._count(turn.turn)
        self._next_answer()

    async def _give_back(self, turn: ShownTurn) -> None:
        """An unanswered prompt returns to the box, unless something new is typed there."""
        self.holds_queue = True
        prompt_box = self.query_one(PromptBox)
        if prompt_box.text:
            turn.answer.note = "not answered"
            return
        prompt_box.put(turn.prompt)
        if turn.answer.is_empty:
            await self.query_one(Transcript).take_away(turn.question, turn.answer)

    async def _notice(self, error: DSparkError) -> None:
        await self.query_one(Transcript).add(Notice(error.message, error.hint))

    # Derived from the state

    def watch_phase(self, phase: Phase) -> None:
        if self.is_mounted:
            self._follow_phase(phase)

    def watch_queue(self) -> None:
        self._name_keys()

    def _follow_phase(self, phase: Phase) -> None:
        self.query_one(LoadingPanel).display = phase == "loading"
        self.query_one(PromptBox).placeholder = wording.PLACEHOLDERS[phase]
        self.query_one(Transcript).welcome(wording.welcome(self.status, self.has_drafter))
        self._name_keys()

    def _name_keys(self) -> None:
        stop = (key_line.STOP,) if self.phase == "answering" else ()
        comes_back = self.aside is not None and self.query_one(Transcript).is_empty
        drafts = (key_line.ROUNDS, key_line.REJECTED, key_line.SHADING) if self.has_drafter else ()
        self.keys = (
            *((key_line.TAKE_BACK,) if self.queue else stop),
            key_line.HELP,
            key_line.OLD if comes_back else key_line.NEW,
            *drafts,
            key_line.COMMANDS,
            key_line.QUIT,
        )
