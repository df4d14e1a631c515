"""`dspark bench --drafters`: several heads on one target, compared with plain decoding."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dspark.bench.config import PLAIN
from dspark.config import EngineConfig, Headless, PairChoice, RuntimeConfig, as_headless
from dspark.errors import InputError
from dspark.progress import follow
from dspark_cli.loading import find_files, progress_bars

if TYPE_CHECKING:
    from dspark.bench.heads import OpenHeads

BETWEEN_HEADS = re.compile(r",(?=[^,=/]+=)")  # a comma inside a path stays one


def parse_drafters(options: Sequence[str]) -> dict[str, str]:
    """NAME=HEAD, several with commas -> folder or hub id by name."""
    heads: dict[str, str] = {}
    for part in (part for option in options for part in BETWEEN_HEADS.split(option)):
        name, _, head = (text.strip() for text in part.partition("="))
        if not name or not head:
            raise InputError(
                f"--drafters {part} is not NAME=HEAD", "Write it like --drafters ours=my-head."
            )
        if name in heads or name == PLAIN:
            raise InputError(f"--drafters: {name} is taken", "Give each head a different name.")
        heads[name] = head
    return heads


def check_drafters(
    heads: Mapping[str, str], draft: str | None, *, is_tau_only: bool, has_schedule: bool
) -> None:
    """Refuses options that contradict each other."""
    if heads and draft is not None:
        raise InputError(
            "--drafters and --draft exclude each other", "Name every head the same way."
        )
    if is_tau_only and not heads:
        raise InputError("--tau-only compares heads", "Name them with --drafters.")
    if is_tau_only and has_schedule:
        raise InputError(
            "--tau-only verifies whole blocks",
            "Leave --schedule and --confidence-threshold out.",
        )


@contextmanager
def open_drafters(
    choice: PairChoice, heads: Mapping[str, str], runtime: RuntimeConfig, engine: EngineConfig
) -> Iterator["OpenHeads"]:
    """The target of the choice and every head, closed at the end."""
    from dspark.hub.resolve import NO_DRAFT

    if NO_DRAFT in heads.values():
        raise InputError("--drafters compares heads, and none is not a head")
    files = find_files(replace(choice, draft=NO_DRAFT), runtime)
    sources = {name: _source(head) for name, head in heads.items()}
    with progress_bars() as bars:
        bars.update("loading", 0, None, "starting")
        from dspark.bench.heads import NamedHead, open_heads  # takes seconds

        named = [NamedHead(name, source) for name, source in sources.items()]
        opened = follow(open_heads(files, named, runtime, engine), bars.show)
    try:
        yield opened
    finally:
        opened.close()


def _source(head: str) -> Path | Headless:
    from dspark.hub import resolve_draft

    source = as_headless(head) or resolve_draft(head)
    if source is None:
        raise InputError(f"{head} has no head", "Give a head, or leave it out of --drafters.")
    return source
