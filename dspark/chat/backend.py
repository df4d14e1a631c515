"""The backend of a chat: a small protocol, and its implementation by the engine.

Heavy imports are inside `load`, so that a front end appears before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dspark.bench.config import PLAIN
from dspark.config import (
    Effort,
    EngineConfig,
    RuntimeConfig,
    SamplingChoice,
    SamplingConfig,
    ScheduleConfig,
    StopConfig,
    as_headless,
)
from dspark.errors import InputError
from dspark.events import Event, FetchProgress, LoadProgress, TextDelta

if TYPE_CHECKING:
    from dspark.bench.race import RaceResult, RaceStep
    from dspark.engine.session import Session
    from dspark.hub import PairFiles

ChatMessages = Sequence[Mapping[str, str]]
ChatEvent = Event | TextDelta


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """Facts known once a pair is loaded; `sampling` is the model's own, None if unknown.

    `tells_rounds` is False for a server that says nothing of drafts; `tells_probs` is True where
    rounds can tell the probabilities of drafts; `refused` names settings of
    the user that it does not accept.
    """

    name: str
    context_limit: int
    device: str
    dtype: str
    has_drafter: bool
    tells_rounds: bool = True
    sampling: SamplingConfig | None = None
    refused: tuple[str, ...] = ()
    tells_probs: bool = False

    @property
    def refused_note(self) -> str:
        named = " and ".join(self.refused)
        return f"without {named}, which the server refuses" if named else ""


def info_of(session: Session) -> BackendInfo:
    return BackendInfo(
        name=session.name,
        context_limit=session.context_limit,
        device=session.runtime.device,
        dtype=session.runtime.dtype,
        has_drafter=session.has_drafter,
        sampling=session.sampling_defaults,
        tells_probs=session.has_drafter,
    )


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How answers are made, as the command line and the user's commands say. `prompts` are asked
    first; schedule None is the backend's own."""

    sampling: SamplingChoice = SamplingChoice()
    stop: StopConfig = StopConfig(max_tokens=None)
    system: str = ""
    prompts: tuple[str, ...] = ()
    schedule: ScheduleConfig | None = None
    probabilities: bool = False  # of drafts, told with each round
    effort: Effort | None = None  # None is the model's own


@dataclass(frozen=True, slots=True)
class OpenRace:
    """The runners' names; iterating `steps` runs them, closing them ends it."""

    names: tuple[str, ...]
    steps: Generator[RaceStep, None, RaceResult]


class ChatBackend(Protocol):
    """Loads once, then answers one at a time. Only `cancel` may come from another thread: it ends
    the last answer that was asked for, begun or not."""

    @property
    def name(self) -> str: ...

    @property
    def info(self) -> BackendInfo: ...

    def load(self) -> Iterator[FetchProgress | LoadProgress]: ...

    def answer(
        self, messages: ChatMessages, sampling: SamplingChoice, stop: StopConfig
    ) -> Iterator[ChatEvent]:
        """A last message of the assistant is continued. Raises ContextFullError where the
        conversation leaves no room for an answer."""
        ...

    def use_schedule(self, schedule: ScheduleConfig) -> None:
        """For the answers from now on; a backend that does not schedule ignores it."""
        ...

    def tell_probabilities(self, tells: bool) -> None:
        """Of drafts, in the rounds of the answers from now on; as `use_schedule`."""
        ...

    def use_effort(self, effort: Effort | None) -> None:
        """How much to think in the answers from now on. A model without levels refuses the next
        prompt."""
        ...

    def race(
        self, messages: ChatMessages, sampling: SamplingChoice, stop: StopConfig, against: str
    ) -> OpenRace:
        """The same answer twice, on one clock: by plain decoding, or by the head `against` ("" is
        none), and by the pair's own drafter. Raises InputError where there is nothing to race."""
        ...

    def cancel(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class OtherModels:
    """Models that a chat can change to. `open` raises DSparkError for an unknown name; the backend
    is not loaded yet."""

    names: Callable[[], Sequence[str]]
    open: Callable[[str], ChatBackend]


class ContextFullError(InputError):
    """A conversation that leaves no room for an answer; raised before its first event."""


NAME_A_HEAD = "dspark chat --draft HEAD names one; lookup needs no files."
ANSWER_ROOM = 1024  # tokens of room for an answer; older turns are dropped for it


def _room(stop: StopConfig, context_limit: int) -> int:
    return min(stop.max_tokens or ANSWER_ROOM, ANSWER_ROOM, context_limit // 4)


FindFiles = Callable[[], "Generator[FetchProgress, None, PairFiles]"]


@dataclass
class EngineBackend:
    """The library's engine; `find_files` fetches missing files of the pair."""

    name: str
    find_files: FindFiles
    runtime: RuntimeConfig = RuntimeConfig()
    engine: EngineConfig = EngineConfig()
    _session: Session | None = field(default=None, init=False, repr=False)
    _tells_probs: bool = field(default=False, init=False)
    _effort: Effort | None = field(default=None, init=False)

    def load(self) -> Iterator[FetchProgress | LoadProgress]:
        files = yield from self.find_files()
        yield LoadProgress("starting the engine", 0, 1)
        from dspark.engine.session import open_session

        self._session = yield from open_session(files, self.runtime, self.engine)
        self._require_tokenizer()

    @property
    def session(self) -> Session:
        if self._session is None:
            raise InputError(f"{self.name} is not loaded yet", "Wait until it is loaded.")
        return self._session

    @property
    def info(self) -> BackendInfo:
        return info_of(self.session)

    def answer(
        self, messages: ChatMessages, sampling: SamplingChoice, stop: StopConfig
    ) -> Iterator[Event]:
        prompt_ids = self._fitting(messages, stop)
        drawn = sampling.over(self.session.sampling_defaults)
        return self.session.generate(prompt_ids, drawn, stop, tells_probs=self._tells_probs)

    def _fitting(self, messages: ChatMessages, stop: StopConfig) -> list[int]:
        """The ids of the conversation. Raises ContextFullError."""
        prompt_ids = self._encoded(messages)
        limit, used = self.session.context_limit, len(prompt_ids)
        has_past = any(message["role"] == "assistant" for message in messages[:-1])
        if used + (_room(stop, limit) if has_past else 1) > limit:
            raise ContextFullError(
                f"the prompt has {used:,} tokens including system prompt and template, "
                f"but the context holds {limit:,}",
                "Shorten it, or split it into several prompts.",
            )
        return prompt_ids

    def race(
        self, messages: ChatMessages, sampling: SamplingChoice, stop: StopConfig, against: str
    ) -> OpenRace:
        """As ChatBackend.race; the chat's caches stay, and both runners read the prompt."""
        if not self.session.has_drafter:
            raise InputError(f"{self.name} has no drafter to race with", NAME_A_HEAD)
        prompt_ids = self._fitting(messages, stop)
        steps = self._raced(
            prompt_ids, sampling.over(self.session.sampling_defaults), stop, against
        )
        return OpenRace((against or PLAIN, self.session.name), steps)

    def _raced(
        self, prompt_ids: Sequence[int], sampling: SamplingConfig, stop: StopConfig, against: str
    ) -> Generator[RaceStep, None, RaceResult]:
        from dspark.bench.race import Runner, race

        own, schedule = self.session, self.session.engine.config.schedule
        with own.with_schedule(schedule) as drafting, _other(own, against) as other:
            first = Runner(against or PLAIN, other, plain=not against)
            runners = [first, Runner(own.name, drafting)]
            return (yield from race(runners, prompt_ids, sampling, stop))

    def _encoded(self, messages: ChatMessages) -> list[int]:
        if messages[-1]["role"] != "assistant":
            return self.session.encode_chat(messages, effort=self._effort)
        return self.session.encode_begun(messages[:-1], messages[-1]["content"])

    def use_schedule(self, schedule: ScheduleConfig) -> None:
        old = self.session
        if old.engine.config.schedule != schedule:
            self._session = old.with_schedule(schedule)
            old.close()

    def tell_probabilities(self, tells: bool) -> None:
        self._tells_probs = tells

    def use_effort(self, effort: Effort | None) -> None:
        self._effort = effort

    def cancel(self) -> None:
        if self._session is not None:
            self._session.cancel()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def _require_tokenizer(self) -> None:
        if self.session.tokenizer is None:
            raise InputError(
                f"{self.name} has no tokenizer, so it cannot chat",
                "Use dspark generate --token-ids.",
            )


def _other(session: Session, against: str) -> Session:
    """The same target with another head, or by the same schedule. Raises InputError."""
    if not against:
        return session.with_schedule(session.engine.config.schedule)
    source = as_headless(against) or Path(against).expanduser()
    if isinstance(source, Path) and not source.is_dir():
        raise InputError(f"there is no head {against}", "Name its folder, or lookup.")
    assert session.engine.drafter is not None, "race() asked for it"
    try:
        return session.with_head(against, source, session.engine.drafter.target_layer_ids)
    except ValueError as error:  # of a layer that this target does not tap
        raise InputError(
            f"{against} reads layers that {session.name} does not tap",
            "dspark race --drafters opens the target for both.",
        ) from error
