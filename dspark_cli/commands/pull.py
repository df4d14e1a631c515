"""`dspark pull`: fetches a pair into the local store and prints where it is."""

from typing import TYPE_CHECKING, Annotated

import typer

from dspark_cli import options
from dspark_cli.output.facts import print_json, size_text
from dspark_cli.output.tables import say
from dspark_cli.views.pull_plan import tell_plan

if TYPE_CHECKING:
    from dspark.hub import Pair

EXAMPLES = (
    "dspark pull demo",
    "dspark pull qwen3-4b --dry-run",
    "dspark pull deepseek-v4-flash --what-if gpu=4090,ram=256",
    "dspark pull HuggingFaceTB/SmolLM2-360M-Instruct",
)
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the files to fetch and whether they fit (exit code 1 if not).",
    ),
]
Head = Annotated[bool, typer.Option("--head-only", "--head", help="Fetch only the head.")]
Force = Annotated[
    bool, typer.Option("--force", help="Fetch even if the pair does not fit in memory.")
]


def pull(
    pair: options.PairArgument = None,
    pair_option: options.PairOption = None,
    dry_run: DryRun = False,
    head: Head = False,
    force: Force = False,
    what_if: options.WhatIf = None,
    as_json: options.Json = False,
) -> None:
    """Fetch a pair into the local store. Run it again to resume an interrupted download."""
    from dspark import hub
    from dspark.hub.settle import check_spelling
    from dspark_cli.loading import progress_bars
    from dspark_cli.naming import chosen_name, refuse_path

    pair = options.one_pair(pair, pair_option)
    check_spelling(pair)
    refuse_path(pair, "pull")
    if what_if is not None:
        from dspark_cli.views.machine_plan import tell_what_if

        tell_what_if(pair, what_if, as_json)
        return
    if hub.is_repo_id(pair):
        _pull_published(pair, dry_run, head, force, as_json)
        return
    known = hub.find_pair(chosen_name(pair))
    if dry_run:
        tell_plan(hub.plan_pull(known.name, only_head=head), as_json)
        return
    is_outdated = not head and hub.is_outdated(known)
    was_present = hub.locate(known.name) is not None and not is_outdated
    if not was_present:
        if not (head or force):
            _check_memory(known)  # before the download is announced
        say(_announcement(known, is_outdated, None if head else hub.download_bytes(known)))
    if not was_present or hub.may_lack(known.name):
        with progress_bars(is_bytes=True) as bars:
            for step in hub.fetch(known.name, only_head=head, is_forced=force):
                bars.show(step)
    if was_present and not as_json:
        say(f"{known.name} is already here")
    target, draft = hub.target_folder(known), hub.draft_folder(known)
    if as_json:
        print_json(
            {
                "name": known.name,
                "target": str(target) if target else None,
                "draft": str(draft) if draft else None,
                "stored_bytes": hub.stored_bytes(known),
                "was_present": was_present,
            }
        )
    else:
        print(draft if head else target)


def _check_memory(pair: "Pair") -> None:
    """Raises MemoryFullError, with the plan of a model with routed experts below it."""
    from dspark import hub
    from dspark.errors import MemoryFullError

    try:
        hub.check_memory(pair)
    except MemoryFullError as error:
        from dspark_cli.views.machine_plan import with_plan

        raise with_plan(pair.name, error) from None


def _announcement(pair: "Pair", is_outdated: bool, num_bytes: int | None) -> str:
    from dspark import hub

    size = f" ({size_text(num_bytes)})" if num_bytes else ""
    if not is_outdated:
        return f"fetching {pair.name}{size}"
    again = f"fetching it again{size}" if hub.needs_download(pair) else "converting it again"
    return f"{pair.name} was stored by an earlier version of dspark: {again}"


def _pull_published(repo_id: str, dry_run: bool, head: bool, force: bool, as_json: bool) -> None:
    from dspark import hub
    from dspark_cli.loading import progress_bars

    folder = None if dry_run or head else hub.kept_folder(repo_id)
    was_present = folder is not None
    if folder is None:
        repo = hub.look_up(repo_id, only_head=head)
        say(f"{repo_id} is {repo.kind}")
        if dry_run:
            tell_plan(repo.plan, as_json)
            return
        with progress_bars(is_bytes=True) as bars:
            for step in hub.fetch_published(repo, is_forced=force):
                bars.show(step)
        folder = hub.kept_folder(repo_id, only_head=head)
        say(f"Run it: dspark chat {repo.options}")
    else:
        with progress_bars(is_bytes=True) as bars:  # missing files
            for step in hub.fetch_missing(repo_id):
                bars.show(step)
        if not as_json:
            say(f"{repo_id} is already here")
    if as_json:
        print_json({"name": repo_id, "folder": str(folder), "was_present": was_present})
        return
    print(folder)
