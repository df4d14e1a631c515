"""From names to an open session, with progress on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dspark.config import EngineConfig, PairChoice, RuntimeConfig
from dspark.progress import follow
from dspark_cli.naming import settled

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from dspark.engine.session import Session
    from dspark.events import FetchProgress, LoadProgress
    from dspark.hub.catalog.pairs import PairFiles


def find_files(choice: PairChoice, runtime: RuntimeConfig | None = None) -> "PairFiles":
    """The chosen files on disk; missing ones are fetched first, if the pair fits on `runtime`."""
    from dspark.hub.find_files import find_files

    choice = settled(choice, runtime)
    with progress_bars(is_bytes=True) as bars:
        return follow(find_files(choice, runtime), bars.show)


@contextmanager
def open_files(
    files: "PairFiles", runtime: RuntimeConfig, engine: EngineConfig
) -> Iterator["Session"]:
    """An open session, closed at the end."""
    session = _load(files, runtime, engine)
    try:
        yield session
    finally:
        session.close()


def _load(files: "PairFiles", runtime: RuntimeConfig, engine: EngineConfig) -> "Session":
    with progress_bars() as bars:
        bars.update("loading", 0, None, "starting")
        from dspark.engine.session import open_session  # takes seconds

        return follow(open_session(files, runtime, engine), bars.show)


class ProgressBars:
    """One bar per file or stage, created at its first report."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def show(self, step: "FetchProgress | LoadProgress") -> None:
        from dspark.events import FetchProgress

        if isinstance(step, FetchProgress):
            self.update(step.name, step.done, step.total)
        else:
            self.update("loading", step.done, step.total, step.stage)

    def update(self, key: str, done: int, total: int | None, label: str | None = None) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(key, total=total)
        self._progress.update(
            self._tasks[key], completed=done, total=total, description=label or key
        )


@contextmanager
def progress_bars(is_bytes: bool = False, has_time_left: bool = False) -> Iterator[ProgressBars]:
    """Bars on stderr, removed once done; nothing if stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    terminal = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if is_bytes else MofNCompleteColumn(),
        *([TimeRemainingColumn(elapsed_when_finished=True)] if has_time_left or is_bytes else []),
        # the terminal's ^C must not wrap, or a line of the bar stays
        console=Console(stderr=True, width=terminal.width - len("^C") - 1),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with progress:
        yield ProgressBars(progress)
