"""Traces: answers in a file with all their rounds and the times at which these came.

A line holds one record in the format of docs/rounds.md.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from dspark.chat.backend import BackendInfo, ChatBackend, ChatEvent, ChatMessages, OpenRace
from dspark.config import Effort, SamplingChoice, SamplingConfig, ScheduleConfig, StopConfig
from dspark.errors import InputError
from dspark.events import FetchProgress, LoadProgress
from dspark.round_records import VERSION, read_event, record_of

AnyEvent = TypeVar("AnyEvent", bound=ChatEvent)


@dataclass(frozen=True, slots=True)
class TracedAnswer:
    """`events` with the seconds from the question to each; the last one is missing if the program
    was killed."""

    prompt: str
    info: BackendInfo
    events: tuple[tuple[float, ChatEvent], ...]


class TraceFile:
    """Appends to a file, a line for each event, so that a killed program loses at most one."""

    def __init__(self, path: Path) -> None:
        """Raises InputError if the file cannot be written."""
        self._path = path
        self._start = 0.0
        with self._naming_errors():
            self._file = path.open("a", encoding="utf-8")

    def traced(
        self,
        prompt: str,
        info: BackendInfo,
        sampling: SamplingConfig,
        events: Iterable[AnyEvent],
    ) -> Iterator[AnyEvent]:
        """The events of an answer, each once it is written."""
        self._begin(prompt, info, sampling)
        for event in events:
            self._write({"at": round(monotonic() - self._start, 6), **record_of(event)})
            yield event

    def close(self) -> None:
        with self._naming_errors():
            self._file.close()

    def _begin(self, prompt: str, info: BackendInfo, sampling: SamplingConfig) -> None:
        self._start = monotonic()
        facts = {
            "model": info.name,
            "device": info.device,
            "dtype": info.dtype,
            "context_limit": info.context_limit,
            "has_drafter": info.has_drafter,
            "tells_rounds": info.tells_rounds,
            "sampling": asdict(sampling),
        }
        self._write({"version": VERSION, "type": "question", "prompt": prompt, **facts})

    def _write(self, record: Mapping[str, Any]) -> None:
        with self._naming_errors():
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"the trace {self._path} could not be written: {error.strerror}",
                "Name another file, or leave out --trace.",
            ) from error


@dataclass
class TracingBackend:
    """Another backend, whose answers are written to a trace."""

    backend: ChatBackend
    trace: TraceFile

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def info(self) -> BackendInfo:
        return self.backend.info

    def load(self) -> Iterator[FetchProgress | LoadProgress]:
        return self.backend.load()

    def answer(
        self, messages: ChatMessages, sampling: SamplingChoice, stop: StopConfig
    ) -> Iterator[ChatEvent]:
        events = self.backend.answer(messages, sampling, stop)  # raises before there is an answer
        drawn = sampling.over(self.info.sampling or SamplingConfig())
        asked = next(each["content"] for each in reversed(messages) if each["role"] == "user")
        return self.trace.traced(asked, self.info, drawn, events)

    def use_schedule(self, schedule: ScheduleConfig) -> None:
        self.backend.use_schedule(schedule)

    def tell_probabilities(self, tells: bool) -> None:
        self.backend.tell_probabilities(tells)

    def use_effort(self, effort: Effort | None) -> None:
        self.backend.use_effort(effort)

    def race(
        self, messages: ChatMessages, sampling: SamplingChoice, stop: StopConfig, against: str
    ) -> OpenRace:
        """As ChatBackend.race; a race is no part of the chat, nor of its trace."""
        return self.backend.race(messages, sampling, stop, against)

    def cancel(self) -> None:
        self.backend.cancel()

    def close(self) -> None:
        self.backend.close()
        self.trace.close()


@dataclass
class _Reading:
    prompt: str
    info: BackendInfo
    events: list[tuple[float, ChatEvent]] = field(default_factory=list)


def read_trace(path: Path) -> tuple[TracedAnswer, ...]:
    """Raises InputError for a file that cannot be read or is no trace. A last line that was cut
    off is left out."""
    answers: list[_Reading] = []
    for number, line, is_cut in _lines(path):
        try:
            _take(json.loads(line), answers)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            if is_cut:
                break
            raise InputError(
                f"{path}, line {number} is no record of a trace",
                "dspark chat --trace FILE writes one; docs/rounds.md describes the format.",
            ) from error
    if not answers:
        raise InputError(f"{path} holds no answer", "dspark chat --trace FILE writes one.")
    return tuple(TracedAnswer(each.prompt, each.info, tuple(each.events)) for each in answers)


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Number and bytes of each line, and whether it was cut off."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line, not line.endswith(b"\n")
    except OSError as error:
        raise InputError(
            f"{path} could not be read: {error.strerror}", "Check the path."
        ) from error


def _take(record: Any, answers: list[_Reading]) -> None:
    if record["type"] != "question":
        answers[-1].events.append((float(record["at"]), read_event(record, request_id=0)))
        return
    if record["version"] != VERSION:
        raise ValueError(f"version {record['version']} is not known")
    info = BackendInfo(
        name=str(record["model"]),
        context_limit=int(record["context_limit"]),
        device=str(record["device"]),
        dtype=str(record["dtype"]),
        has_drafter=bool(record["has_drafter"]),
        tells_rounds=bool(record["tells_rounds"]),
        sampling=SamplingConfig(**record["sampling"]),
    )
    answers.append(_Reading(str(record["prompt"]), info))
