"""`dspark list`: known pairs, and how much of each is on disk."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspark_cli import options
from dspark_cli.output.facts import print_json, size_or_unknown, size_text
from dspark_cli.output.tables import Column, print_table

if TYPE_CHECKING:
    from dspark.hub import Pair
    from dspark.hub.memory_needed import Room

EXAMPLES = ("dspark list", "dspark list --json")
COLUMNS = (
    Column("PAIR"),
    Column("ON DISK", is_right=True),
    Column("MEMORY", is_right=True),
    Column("LICENCE", rank=2),
    Column("DESCRIPTION", wraps=True, rank=1),
)
Markdown = Annotated[
    bool, typer.Option("--markdown", help="Print the page docs/models.md instead.")
]


def list_(as_json: options.Json = False, markdown: Markdown = False) -> None:
    """List the known pairs, how much of each is on disk and how much memory it needs."""
    from dspark import hub

    if markdown:
        from dspark_cli.models_page import models_markdown

        print(models_markdown(), end="")
        return
    from dspark.hub.memory_fit import rooms

    room = rooms()[0]
    described = [_describe(pair, room) for pair in hub.known_pairs().values()]
    # pairs on disk come first; a stable sort keeps the order otherwise
    pairs = sorted(described, key=lambda each: not (each["is_complete"] or each["stored_bytes"]))
    if as_json:
        runs_on = {"device": room.device, "dtype": room.dtype}
        print_json({"store": str(hub.home()), "runs_on": runs_on, "pairs": pairs})
        return
    print_table(COLUMNS, [_row(each) for each in pairs])


def _row(pair: dict[str, Any]) -> tuple[str, ...]:
    return (
        pair["name"],
        _state(pair),
        size_or_unknown(pair["memory_bytes"]),
        pair["licence"] or "unknown",
        pair["description"],
    )


def _describe(pair: "Pair", room: "Room") -> dict[str, Any]:
    from dspark import hub
    from dspark.hub.memory_fit import pair_memory

    return {
        "name": pair.name,
        "description": pair.description,
        "licence": pair.licence,
        "num_parameters": pair.num_parameters,
        "is_complete": hub.locate(pair.name) is not None,
        "has_draft": hub.draft_folder(pair) is not None,
        "stored_bytes": hub.stored_bytes(pair) + _own_bytes(pair),
        "memory_bytes": pair_memory(pair, room),
        "download_bytes": hub.download_bytes(pair),
    }


def _own_bytes(pair: "Pair") -> int:
    """The user's own folders, which are not in the store."""
    from dspark import hub
    from dspark.hub.catalog.pairs import LocalFolder

    sources = (pair.target, pair.draft)
    return sum(hub.folder_bytes(each.path) for each in sources if isinstance(each, LocalFolder))


def _state(pair: dict[str, Any]) -> str:
    size = size_text(pair["stored_bytes"])
    if pair["is_complete"]:
        return size
    return f"{size}, unfinished" if pair["stored_bytes"] else "no"
