"""From names to an open session, with progress on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from dspark.config import EngineConfig, RuntimeConfig
from dspark.events import FetchProgress, LoadProgress
from dspark.progress import follow
from dspark_cli.naming import PairChoice, settled, shown_name

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from dspark.engine.session import Session
    from dspark.hub.catalog.pairs import PairFiles


def find_files(choice: PairChoice, runtime: RuntimeConfig | None = None) -> "PairFiles":
    """The chosen files on disk; missing ones are fetched first, if the pair fits on `runtime`."""
    return find_settled(settled(choice, runtime), runtime)


def find_settled(choice: PairChoice, runtime: RuntimeConfig | None = None) -> "PairFiles":
    """As find_files, for a choice that is already settled."""
    from dspark import hub
    from dspark.hub.catalog.pairs import PairFiles
    from dspark.hub.resolve import LOOKUP_DRAFT, NO_DRAFT

    if choice.draft == LOOKUP_DRAFT:
        return replace(find_settled(replace(choice, draft=NO_DRAFT), runtime), has_lookup=True)
    _fetch_missing(choice, runtime)
    if choice.target is not None:
        draft = hub.resolve_draft(choice.draft) if choice.draft else None
        target = hub.resolve_target(choice.target)
        return PairFiles(name=shown_name(choice.target), target=target, draft=draft)
    files = None if hub.may_lack(choice.pair) else hub.locate(choice.pair)
    files = files or _fetch(choice.pair)
    if choice.draft is None:
        return files
    return PairFiles(files.name, files.target, hub.resolve_draft(choice.draft))


def _fetch_missing(choice: PairChoice, runtime: RuntimeConfig | None) -> None:
    """Fetches hub repositories given by id."""
    from dspark import hub

    for name, is_head in ((choice.target, False), (choice.draft, True)):
        with progress_bars(is_bytes=True) as bars:
            for step in hub.fetch_missing(name or "", is_head=is_head, runtime=runtime):
                bars.show(step)


def _fetch(name: str) -> "PairFiles":
    from dspark import hub
    from dspark.errors import StorageError

    with progress_bars(is_bytes=True) as bars:
        for step in hub.fetch(name):
            bars.show(step)
    files = hub.locate(name)
    if files is None:
        raise StorageError(
            f"{name} was fetched but is not in the store", f"Run dspark pull {name} again."
        )
    return files


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

    def show(self, step: FetchProgress | LoadProgress) -> None:
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
