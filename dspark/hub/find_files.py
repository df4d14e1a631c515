"""From a settled choice to the files of a pair; missing ones are fetched."""

from collections.abc import Generator
from dataclasses import replace

from dspark import hub
from dspark.config import PairChoice, RuntimeConfig, as_headless
from dspark.errors import StorageError
from dspark.events import FetchProgress
from dspark.hub.catalog.pairs import PairFiles
from dspark.hub.paths import shown_name
from dspark.hub.resolve import NO_DRAFT


def find_files(
    choice: PairChoice, runtime: RuntimeConfig | None = None
) -> Generator[FetchProgress, None, PairFiles]:
    """The files of a choice that is settled (hub/settle.py). Missing ones are fetched first, if
    the pair fits on `runtime`."""
    if (headless := as_headless(choice.draft)) is not None:
        files = yield from find_files(replace(choice, draft=NO_DRAFT), runtime)
        return replace(files, headless=headless)
    yield from hub.fetch_missing(choice.target or "", runtime=runtime)
    yield from hub.fetch_missing(choice.draft or "", is_head=True, runtime=runtime)
    if choice.target is not None:
        draft = hub.resolve_draft(choice.draft) if choice.draft else None
        target = hub.resolve_target(choice.target)
        return PairFiles(name=shown_name(choice.target), target=target, draft=draft)
    files = yield from _pair_files(choice.pair)
    if choice.draft is None:
        return files
    return PairFiles(files.name, files.target, hub.resolve_draft(choice.draft))


def _pair_files(name: str) -> Generator[FetchProgress, None, PairFiles]:
    files = None if hub.may_lack(name) else hub.locate(name)
    if files is None:
        yield from hub.fetch(name)
        files = hub.locate(name)
    if files is None:
        raise StorageError(
            f"{name} was fetched but is not in the store", f"Run dspark pull {name} again."
        )
    return files
