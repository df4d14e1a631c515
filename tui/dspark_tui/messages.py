"""Messages between widgets: the worker reports the backend's events to the screen."""

from dataclasses import dataclass

from textual.message import Message

from dspark.chat.ask import LeftOut
from dspark.chat.backend import BackendInfo, ChatEvent
from dspark.errors import DSparkError, gpu_failure, reason_of
from dspark.events import FetchProgress, LoadProgress

UNEXPECTED_HINT = "If it happens again, please report it with the output of dspark doctor."


@dataclass
class LoadStep(Message):
    """Progress of loading a pair."""

    step: FetchProgress | LoadProgress


@dataclass
class BackendReady(Message):
    info: BackendInfo


@dataclass
class LoadFailed(Message):
    error: DSparkError


@dataclass
class AnswerEvents(Message):
    """What came of the answer to turn number `turn` since the last frame."""

    turn: int
    events: tuple[LeftOut | ChatEvent, ...]


@dataclass
class AnswerFailed(Message):
    turn: int
    error: DSparkError


@dataclass
class CopyRequested(Message):
    """A click on "copy" beside some code."""

    text: str


def as_dspark_error(error: Exception) -> DSparkError:
    """An error in one line, with a hint."""
    if isinstance(error, DSparkError):
        return error
    if (failure := gpu_failure(error)) is not None:
        return failure
    name, reason = type(error).__name__, reason_of(error)
    return DSparkError(name if reason == name else f"{name}: {reason}", UNEXPECTED_HINT)
