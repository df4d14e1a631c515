"""`dspark rm`: take a pair out of the local store."""

import sys
from typing import Annotated

import typer

from dspark.errors import InputError
from dspark_cli import options
from dspark_cli.facts import print_json, size_text

PairName = Annotated[str, typer.Argument(metavar="PAIR", help="Alias of a pair; see dspark list.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def rm(pair: PairName, yes: Yes = False, as_json: options.Json = False) -> None:
    """Remove a pair from the local store; what dspark ships stays."""
    from dspark import hub

    size = hub.stored_bytes(hub.find_pair(pair))
    if size and not yes:
        _ask(pair, size)
    freed = hub.remove(pair)
    if as_json:
        print_json({"name": pair, "freed_bytes": freed})
    else:
        print(f"{pair}: {size_text(freed)} freed" if freed else f"{pair} was not in the store")


def _ask(pair: str, size: int) -> None:
    if not sys.stdin.isatty():
        raise InputError(f"rm asks before it removes {pair}", "Add --yes where nobody can answer.")
    typer.confirm(f"Remove {pair} ({size_text(size)})?", abort=True, err=True)
