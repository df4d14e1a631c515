"""Attaching a head instead of training one: the choice, the probe's verdict, the pair's name."""

from typing import TYPE_CHECKING

import typer

from dspark.config import PairChoice, RuntimeConfig
from dspark.errors import InputError
from dspark.progress import follow
from dspark_cli.loading import find_files, progress_bars
from dspark_cli.naming import chosen_name
from dspark_cli.output.facts import print_json
from dspark_cli.output.tables import say
from dspark_cli.views.probe import probe_lines
from dspark_cli.views.pull_plan import tell_plan

if TYPE_CHECKING:
    from pathlib import Path

    from dspark.graft.attach import AttachEvent, AttachJob, HeadMatch
    from dspark.hub import Pair

# all other options concern training
SHARED_OPTIONS = frozenset(
    (
        "base",
        "base_option",
        "attach",
        "train",
        "name",
        "force",
        "plain",
        "as_json",
        "device",
        "dtype",
    )
)


def training_options(context: typer.Context) -> list[str]:
    """Options on the command line that only apply to training."""
    return [
        name
        for name in context.params
        if name not in SHARED_OPTIONS
        and (source := context.get_parameter_source(name)) is not None
        and source.name == "COMMANDLINE"
    ]


def attach_head(
    base: str,
    head: str | None,
    *,
    name: str | None,
    runtime: RuntimeConfig,
    is_forced: bool,
    as_json: bool,
) -> bool:
    """Attach the given head, or else the released one that fits; False if none does."""
    from dspark import hub
    from dspark.graft.attach import AttachJob
    from dspark.hub.catalog.find import FAMILIES

    is_name = hub.known_pair(base) is not None or base in FAMILIES
    files = find_files(PairChoice(base, None if is_name else base, head))
    base = files.name if base in FAMILIES else base
    is_released = head is None
    if head is not None:
        draft = files.draft
    elif files.draft is not None:
        head, draft = base, files.draft
        say(f"{base} has its own head")
    else:
        pair = _released_head(files.target)
        if pair is None:
            return False
        head, draft = pair.name, _fetched(pair)
    if draft is None:
        raise InputError(f"{head} has no head to attach", "Give the folder or the id of one.")
    _attach(
        AttachJob(base, files.target, head, draft, is_released, name, runtime, is_forced), as_json
    )
    return True


def tell_attachment(base: str, *, as_json: bool) -> bool:
    """Prints the head and the download; False if the choice needs the target's files first."""
    from dspark import hub

    pair = hub.known_pair(chosen_name(base)) or hub.pair_of_target(base)
    if pair is None or pair.draft is None:
        return False
    say(
        f"the head of {pair.name} would be attached and probed, and nothing trained "
        "(--train trains one)"
    )
    tell_plan(hub.plan_pull(pair.name), as_json)
    return True


def keep_trained(name: str | None, base: str, out: "Path", *, as_json: bool) -> None:
    """Registers a newly trained head and its target as a pair."""
    from dspark.graft.attach import keep_pair
    from dspark.graft.judge.speedup import read_measured

    pair = keep_pair(name, str(out), base, str(out))
    say(f"saved as {pair.name}; chat with it: dspark chat {pair.name}")
    if as_json:
        print_json(
            {"name": pair.name, "base": base, "draft": str(out), "measured": read_measured(out)}
        )


def _released_head(target: "Path") -> "Pair | None":
    from dspark.graft.attach import match_head

    match = match_head(target)
    if match.pair is None:
        say(f"no released head fits, so one is trained{_why(match)}")
        return None
    texts = (
        "their tokenizers agree"
        if match.is_tokenizer_compared
        else "their tokenizers could not be compared, so the probe decides"
    )
    say(f"the head of {match.pair.name} fits by its sizes; {texts} (--train trains another)")
    return match.pair


def _why(match: "HeadMatch") -> str:
    if match.nearest is None:
        return ""
    return f"; the nearest is that of {match.nearest.name}: {', '.join(match.differences)}"


def _fetched(pair: "Pair") -> "Path":
    from dspark.graft.attach import fetch_head

    with progress_bars(is_bytes=True) as bars:
        return follow(fetch_head(pair), bars.show)


def _attach(job: "AttachJob", as_json: bool) -> None:
    from dspark.events import LoadProgress
    from dspark.graft.attach import attach

    facts: dict[str, object] = {}

    def show(event: "AttachEvent") -> None:
        if isinstance(event, LoadProgress):
            bars.show(event)
            return
        for line in probe_lines(event):
            say(line)
        facts.update(event.figures())

    with progress_bars() as bars:
        pair = follow(attach(job), show)
    say(
        f"{'saved' if pair.is_new else 'known'} as {pair.name}; chat with it: "
        f"dspark chat {pair.name}"
    )
    facts |= {"name": pair.name, "target": str(job.target), "draft": str(job.draft)}
    if as_json:
        print_json(facts)
