"""The state of the chat, and how a turn goes from its prompt to its end."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from textual import on
from textual.reactive import var
from textual.screen import Screen
from textual.timer import Timer

from dspark.chat.ask import LeftOut, PendingAnswer
from dspark.chat.backend import BackendInfo, ChatBackend, ChatEvent, ChatSettings, OtherModels
from dspark.chat.control_characters import visible
from dspark.chat.conversation import Conversation, Turn
from dspark.chat.sessions.recording import Recording
from dspark.chat.sessions.store import ChatStore
from dspark.chat.settings import as_json
from dspark.chat.shared_wording import sampling_words
from dspark.errors import DSparkError
from dspark.events import Finished
from dspark_tui import wording
from dspark_tui.actions import chats, versions
from dspark_tui.garbage import Garbage
from dspark_tui.messages import (
    AnswerEvents,
    AnswerFailed,
    BackendReady,
    LoadFailed,
    LoadStep,
)
from dspark_tui.token_styles import View
from dspark_tui.turn import ShownTurn
from dspark_tui.widgets import key_line
from dspark_tui.widgets.answer import Answer
from dspark_tui.widgets.key_line import Key, KeyLine
from dspark_tui.widgets.loading import LoadingPanel
from dspark_tui.widgets.prompt_box import PromptBox
from dspark_tui.widgets.sidebar import Sidebar
from dspark_tui.widgets.status_bar import Hint, Status
from dspark_tui.widgets.transcript import Notice, Remark, Transcript
from dspark_tui.worker import BackendWorker

Phase = Literal["loading", "failed", "ready", "answering"]
HINT_SECONDS = 4.0


class ChatTurns(Screen[None]):
    """Handlers own the state, the worker only reports. What is shown is in the subclass."""

    # Widgets bound to these draw themselves; `reactive` would draw the whole screen each time.
    view: var[View] = var(View())
    status: var[Status] = var(Status())
    hint: var[Hint | None] = var[Hint | None](None)
    has_drafter: var[bool] = var(True)
    phase: var[Phase] = var[Phase]("loading")
    turn: var[ShownTurn | None] = var[ShownTurn | None](None)  # the one that is being answered
    queue: var[tuple[ShownTurn, ...]] = var[tuple[ShownTurn, ...]](())
    keys: var[tuple[Key, ...]] = var[tuple[Key, ...]](())

    def __init__(
        self,
        backend: ChatBackend,
        settings: ChatSettings,
        store: ChatStore | None = None,
        first_chat: int | None = None,
        models: OtherModels | None = None,
        garbage: Garbage | None = None,
    ) -> None:
        super().__init__()
        self.garbage = garbage or Garbage()
        self.models = models
        self.given = self.settings = settings
        self.store = store or ChatStore()
        self.conversation = Conversation(settings.system)
        self.shown: list[ShownTurn] = []
        self.worker = BackendWorker(backend)
        self.turn_count = 0
        self.left_turn: ShownTurn | None = None  # of a chat set aside, which is being stopped
        self.aside: tuple[Conversation, list[ShownTurn], Status] | None = None
        self.editing: versions.Editing | None = None
        self.chosen: ShownTurn | None = None
        self.holds_queue = False  # after a stop or a failure, until Enter
        self.quits_until = 0.0
        self._first_chat = first_chat
        self._recording: Recording | None = None
        self._hint_end: Timer | None = None

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
        self.next_answer()

    @on(LoadFailed)
    async def show_load_failure(self, message: LoadFailed) -> None:
        self.phase = "failed"
        if self.queue:
            first, *rest = self.queue
            self.queue = tuple(rest)
            await self._give_back(first)
        await self._notice(message.error)

    @on(AnswerEvents)
    async def show_answer_events(self, message: AnswerEvents) -> None:
        turn = self._turn_numbered(message.turn)
        if turn is None:
            return
        for event in message.events:
            turn.conversation.take(turn.turn, event)
            if isinstance(event, LeftOut) and turn is self.turn:
                await self.query_one(Transcript).add(Remark(str(event)), before=turn.question)
        self._write(turn, message.events)
        if (finished := turn.turn.finished) is not None:
            await self._end_answer(turn, finished)

    def _write(self, turn: ShownTurn, events: Iterable[LeftOut | ChatEvent]) -> None:
        turn.write(each for each in events if not isinstance(each, LeftOut | Finished))
        if turn is self.turn:
            self.count(turn.turn)

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

    def count(self, turn: Turn) -> None:
        tokens = turn.context_tokens
        used = self.status.context_tokens if tokens is None else tokens
        self.status = replace(self.status, stats=turn.stats, context_tokens=used)

    # Steps of a turn

    @property
    def last(self) -> ShownTurn | None:
        """The one that is being answered, or the last one that was."""
        answered = [turn for turn in self.shown if turn.turn.finished is not None]
        return self.turn or (answered[-1] if answered else None)

    @property
    def info(self) -> BackendInfo | None:
        return self.worker.backend.info if self.status.place else None

    async def enqueue(self, prompt: str, *, opening: str = "") -> None:
        """Queues a prompt last; while the queue is held, first: it may be the corrected failed
        prompt."""
        turn = chats.shown_turn(self, Turn(prompt, opening=opening), self.conversation)
        is_loading = self.phase == "loading"
        turn.answer.note = wording.WAITS_FOR_MODEL if is_loading else wording.WAITS_FOR_ANSWER
        first = self.queue[0] if self.holds_queue and self.queue else None
        await self.query_one(Transcript).add(
            turn.question, turn.answer, before=first.question if first else None
        )
        self.shown.insert(self.shown.index(first) if first else len(self.shown), turn)
        self.queue = (turn, *self.queue) if first else (*self.queue, turn)

    def next_answer(self) -> None:
        if self.phase != "ready" or not self.queue:
            return
        if self.holds_queue:
            self.say(Hint(wording.still_queued(len(self.queue))))
            return
        turn, *rest = self.queue
        self.turn, self.queue = turn, tuple(rest)
        self.phase = "answering"
        turn.answer.note = "reading the prompt"
        messages = turn.conversation.with_prompt(turn.prompt, turn.turn.opening)
        pending = PendingAnswer(self.worker.backend, messages, self.settings)
        self._recording = Recording(self.store, turn.turn)
        self._recording.begin(turn.conversation, as_json(self.settings), self.status.model)
        self.worker.answer(turn.number, pending, self._recording.of(pending))
        chats.name_versions(self)
        chats.refresh_sidebar(self)

    async def _end_answer(self, turn: ShownTurn, event: Finished) -> None:
        turn.end(event, self.has_drafter, self.worker.backend.info.refused_note)
        if turn is self.left_turn:
            self.left_turn = None
            return
        self.turn, self.phase = None, "ready"
        if event.reason == "cancelled":
            self.holds_queue = True
            if not turn.turn.text:
                await self._give_back(turn)
        if event.stats.new_tokens:
            self.count(turn.turn)
        if self._recording is not None and self._recording.failure:
            self.say(Hint(wording.store_failed(self._recording.failure), is_error=True))
        self.next_answer()

    async def _give_back(self, turn: ShownTurn) -> None:
        """An unanswered prompt returns to the box, unless something new is typed there."""
        self.holds_queue = True
        prompt_box = self.query_one(PromptBox)
        if prompt_box.text:
            turn.answer.note = "not answered"
            return
        prompt_box.put_prompt(turn.prompt)
        if turn.answer.is_empty:
            await self._take_away(turn)

    async def _take_away(self, turn: ShownTurn) -> None:
        if turn in self.shown:
            self.shown.remove(turn)
        await self.query_one(Transcript).take_away(turn.question, turn.answer)

    async def _notice(self, error: DSparkError) -> None:
        await self.query_one(Transcript).add(Notice(error.message, error.hint))

    async def take_back(self) -> None:
        """Returns the newest queued prompt to the box."""
        if self.queue:
            *rest, newest = self.queue
            self.queue = tuple(rest)
            self.query_one(PromptBox).put_before(newest.prompt)
            await self._take_away(newest)

    def leave_editing(self) -> None:
        self.editing = None
        self.query_one(PromptBox).border_title = ""

    def say(self, hint: Hint) -> None:
        """Shows one notice at a time, without covering text."""
        if self._hint_end is not None:
            self._hint_end.stop()
        self.hint = hint
        self._hint_end = self.set_timer(HINT_SECONDS, lambda: setattr(self, "hint", None))

    # Derived from the state

    def watch_phase(self, phase: Phase) -> None:
        self.garbage.follow(phase == "answering")
        if self.is_mounted:
            self._follow_phase(phase)

    def watch_view(self, view: View) -> None:
        """Of the chat set aside too."""
        for answer in self.query(Answer):
            answer.view = view

    def watch_queue(self) -> None:
        self.name_keys()

    def _follow_phase(self, phase: Phase) -> None:
        self.query_one(LoadingPanel).display = phase == "loading"
        self.query_one(PromptBox).placeholder = wording.PLACEHOLDERS[phase]
        self.query_one(Transcript).welcome(wording.welcome(self.status, self.has_drafter))
        self.name_keys()

    def name_keys(self) -> None:
        of_sidebar = self.query_one(Sidebar).keys
        is_elsewhere = self.chosen is not None or bool(of_sidebar)
        self.query_one(KeyLine).set_class(is_elsewhere, "needed")
        comes_back = self.aside is not None and self.query_one(Transcript).is_empty
        self.keys = key_line.keys_of(
            of_sidebar=of_sidebar,
            is_choosing=self.chosen is not None,
            is_answering=self.phase == "answering",
            has_queue=bool(self.queue),
            comes_back=comes_back,
            has_drafter=self.has_drafter,
        )
