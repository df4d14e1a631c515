"""A backend that plays a script, one step at a time where a test asks for it."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from time import monotonic

import pytest
from rich.cells import cell_len
from rich.style import Style
from textual.pilot import Pilot

from dspark.bench.race import Runner, race
from dspark.chat.backend import (
    BackendInfo,
    ChatMessages,
    ChatSettings,
    ContextFullError,
    OpenRace,
    OtherModels,
)
from dspark.chat.sessions.store import ChatStore
from dspark.config import Effort, SamplingChoice, SamplingConfig, ScheduleConfig, StopConfig
from dspark.events import (
    DecodeStats,
    Event,
    FetchProgress,
    Finished,
    LoadProgress,
    Piece,
    PrefillProgress,
    Round,
)
from dspark_tui.app import DSparkApp
from dspark_tui.screens.chat import ChatScreen
from dspark_tui.token_styles import View
from dspark_tui.widgets.prompt_box import PromptBox

PATIENCE_SECONDS = 20
SETTINGS = ChatSettings()


@dataclass(frozen=True)
class Step:
    """One round in words: drafts kept, drafts refused, the target's own token."""

    accepted: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    own: str = ""
    confidence: tuple[float, ...] | None = None
    draft_probs: tuple[float, ...] | None = None
    target_probs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Script:
    """One answer, thinking before it. An error is raised after the rounds."""

    first: str
    steps: tuple[Step, ...] = ()
    reason: str = "stop_token"
    error: Exception | None = None
    thinking: tuple[str, ...] = ()


LOADING = (
    FetchProgress("target.safetensors", 40_000_000, 98_000_000),
    LoadProgress("reading the model", 1, 3),
)


@dataclass
class ScriptedBackend:
    scripts: list[Script] = field(default_factory=list)
    loading: tuple[FetchProgress | LoadProgress, ...] = LOADING
    load_errors: list[Exception] = field(default_factory=list)
    context_limit: int = 8192
    has_drafter: bool = True
    is_held: bool = False
    name: str = "demo"
    own_sampling: SamplingConfig | None = SamplingConfig()
    asked: list[ChatMessages] = field(default_factory=list)
    sampling: list[SamplingChoice] = field(default_factory=list)
    is_closed: bool = False
    most_messages: int | None = None  # what the context holds
    schedules: list[ScheduleConfig] = field(default_factory=list)
    raced: list[tuple[str, int | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._gate = threading.Semaphore(0)
        self.is_cancelled = False
        self.num_cancels = 0
        self.tells_probs = False
        self._running = 0

    @property
    def info(self) -> BackendInfo:
        return BackendInfo(
            name=self.name,
            context_limit=self.context_limit,
            device="cpu",
            dtype="float32",
            has_drafter=self.has_drafter,
            sampling=self.own_sampling,
            tells_probs=True,
        )

    def release(self, steps: int = 1) -> None:
        """Lets a held backend go on for some steps; each event is one."""
        self._gate.release(steps)

    def cancel(self) -> None:
        self.is_cancelled = True
        self.num_cancels += 1

    def use_schedule(self, schedule: ScheduleConfig) -> None:
        self.schedules.append(schedule)

    def race(
        self, messages: ChatMessages, sampling: SamplingChoice, stop: StopConfig, against: str
    ) -> OpenRace:
        self.asked.append(messages)
        self.raced.append((against, stop.max_tokens))
        runs = [self._play(self.scripts.pop(0)) for _ in range(2)]
        runners = [
            Runner(name, Played(run)) for name, run in zip(("plain", "demo"), runs, strict=True)
        ]  # type: ignore[arg-type]
        return OpenRace((against or "plain", self.name), race(runners, (1,)))

    def tell_probabilities(self, tells: bool) -> None:
        self.tells_probs = tells

    def use_effort(self, effort: Effort | None) -> None:
        self.effort = effort

    def close(self) -> None:
        self.is_closed = True

    def load(self) -> Iterator[FetchProgress | LoadProgress]:
        for step in self.loading:
            self._wait()
            yield step
        self._wait()
        if self.load_errors:
            raise self.load_errors.pop(0)

    def answer(
        self, messages: ChatMessages, sampling: SamplingChoice, stop: StopConfig
    ) -> Iterator[Event]:
        self.is_cancelled = False
        if self.most_messages is not None and len(messages) > self.most_messages:
            raise ContextFullError("the prompt is too long", "Shorten it.")
        self.asked.append(messages)
        self.sampling.append(sampling)
        return self._answer()

    def _answer(self) -> Iterator[Event]:
        self._running += 1
        assert self._running == 1, "two answers at once"
        try:
            yield from self._play(self.scripts.pop(0))
        finally:
            self._running -= 1

    def _play(self, script: Script) -> Iterator[Event]:
        told = Told(tells_probs=self.tells_probs)
        self._wait()
        if script.error is not None and not script.first:
            raise script.error
        for thought in script.thinking:
            yield told.thought(thought)
            self._wait()
        if script.first and not self.is_cancelled:
            yield told.prompt(script.first)
        for step in script.steps:
            self._wait()
            if self.is_cancelled:
                break
            yield told.round(step)
        if script.error is not None:
            raise script.error
        yield told.end("cancelled" if self.is_cancelled else script.reason)

    def _wait(self) -> None:
        if self.is_held:
            assert self._gate.acquire(timeout=PATIENCE_SECONDS), "nobody released the backend"


@dataclass
class Played:
    """A session whose answer is played."""

    events: Iterator[Event]

    def generate(self, *_: object, plain: bool) -> Iterator[Event]:
        return self.events


@dataclass
class Told:
    """What an answer has said so far, turned into events."""

    text: str = ""
    thinking: str = ""
    rounds: list[Round] = field(default_factory=list)
    tokens: int = 0
    tells_probs: bool = False

    def prompt(self, first: str) -> PrefillProgress:
        self._say(Piece(1, first, False))
        return PrefillProgress(0, 12, 12, (Piece(1, first, False),))

    def thought(self, text: str) -> PrefillProgress | Round:
        """The first one comes of the prompt's own pass, each other one of a round."""
        self.thinking += text
        piece = Piece(4, text, False, is_thinking=True)
        if self.tokens == 0:
            self.tokens = 1
            return PrefillProgress(0, 12, 12, (piece,))
        round_ = self.round(Step(own=" "))
        self.text = self.text.removesuffix(" ")
        return replace(round_, pieces=(piece,))

    def round(self, step: Step) -> Round:
        drafted = (*step.accepted, *step.rejected)
        confidence = step.confidence or tuple(0.9 for _ in drafted)
        drafts = [
            Piece(2, text, True, sure) for text, sure in zip(drafted, confidence, strict=True)
        ]
        kept = len(step.accepted)
        pieces = (*drafts[:kept], *([Piece(3, step.own, False)] if step.own else []))
        for piece in pieces:
            self._say(piece)
        round_ = Round(
            request_id=0,
            index=len(self.rounds),
            anchor=1,
            draft=tuple(2 for _ in drafted),
            confidence=confidence,
            verified=len(drafted),
            accepted=kept,
            next=3,
            pieces=pieces,
            rejected=tuple(drafts[kept:]),
            context_tokens=12 + self.tokens,
            draft_seconds=0.01,
            verify_seconds=0.03,
            seconds=0.05,
            accept_seconds=0.002,
            draft_probs=step.draft_probs if self.tells_probs else None,
            target_probs=step.target_probs if self.tells_probs else None,
        )
        self.rounds.append(round_)
        return round_

    def end(self, reason: str) -> Finished:
        stats = DecodeStats(
            prompt_tokens=12,
            new_tokens=self.tokens,
            rounds=len(self.rounds),
            drafted=sum(len(each.draft) for each in self.rounds),
            verified=sum(each.verified for each in self.rounds),
            accepted=sum(each.accepted for each in self.rounds),
            prefill_seconds=0.05,
            decode_seconds=sum(each.seconds for each in self.rounds),
        )
        thinking = self.thinking
        ids = tuple(map(ord, self.text))
        return Finished(0, reason, ids, self.text, stats, thinking=thinking)  # type: ignore[arg-type]

    def _say(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += 1


@pytest.fixture
def script() -> Callable[..., Script]:
    """script("Hi", ([" the"], [" you"], "re"), ...): the prompt's own token, then the rounds."""

    def build(first: str, *steps: tuple[object, ...], **rest: object) -> Script:
        return Script(first, tuple(Step(*step) for step in steps), **rest)

    return build


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@dataclass
class Chat:
    """The real app in a terminal that is not there."""

    app: DSparkApp
    pilot: Pilot[None]

    @property
    def screen(self) -> ChatScreen:
        return next(each for each in self.app.screen_stack if isinstance(each, ChatScreen))

    @property
    def prompt(self) -> PromptBox:
        return self.screen.query_one(PromptBox)

    @property
    def shown(self) -> str:
        """Everything on the terminal, line by line."""
        compositor = self.app.screen._compositor
        lines = compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in lines)

    def segments(self, text: str) -> list[Style]:
        """The styles of the cells that show this text, wherever it stands first."""
        for strip in self.app.screen._compositor.render_strips():
            start = strip.text.find(text)
            if start >= 0:
                begin = cell_len(strip.text[:start])
                cut = strip.crop(begin, begin + cell_len(text))
                return [segment.style for segment in cut if segment.style]
        raise AssertionError(f"{text!r} is not shown:\n{self.shown}")

    def style(self, text: str) -> Style:
        styles = self.segments(text)
        assert len({str(each) for each in styles}) == 1, f"{text!r} has several styles"
        return styles[0]

    async def until(self, predicate: Callable[[], object]) -> None:
        """Lets the app run until something holds; never a fixed sleep."""
        end = monotonic() + PATIENCE_SECONDS
        while not predicate():
            assert monotonic() < end, f"it never came to hold; shown is\n{self.shown}"
            await self.pilot.pause(0.01)

    async def until_shown(self, *texts: str) -> None:
        await self.until(lambda: all(text in self.shown for text in texts))

    async def ask(self, text: str) -> None:
        self.prompt.put(text)
        await self.pilot.press("enter")

    async def asked_and_answered(self, text: str) -> None:
        await self.until(lambda: self.screen.phase == "ready")
        await self.ask(text)
        await self.until(lambda: self.screen.phase == "ready" and self.screen.turn is None)
        await self.pilot.pause()


@pytest.fixture
def open_chat(backend: ScriptedBackend) -> Callable[..., AbstractAsyncContextManager[Chat]]:
    """open_chat(script, ..., size=(columns, rows)) with the fixture `backend` playing; answers that
    have ended keep their marks unless `rendered`."""

    @asynccontextmanager
    async def start(
        *scripts: Script,
        size: tuple[int, int] = (80, 24),
        settings: ChatSettings = SETTINGS,
        rendered: bool = False,
        store: ChatStore | None = None,
        first_chat: int | None = None,
        models: OtherModels | None = None,
    ) -> AsyncIterator[Chat]:
        backend.scripts += scripts
        app = DSparkApp(backend, settings, store, first_chat, models)
        async with app.run_test(size=size, notifications=True) as pilot:
            chat = Chat(app, pilot)
            await chat.until(lambda: len(app.screen_stack) > 1)
            chat.screen.view = View(rendered=rendered)
            yield chat
            # Whatever still waits for the test may go on, so that the thread ends.
            backend.is_held = False
            backend.release(100)

    return start
