"""`dspark help`: the same pages as --help."""

from typing import Annotated

import typer

EXAMPLES = ("dspark help", "dspark help chat")


def _complete(context: typer.Context, incomplete: str) -> list[str]:
    return [name for name in context.find_root().command.commands if name.startswith(incomplete)]  # type: ignore[attr-defined]  # a group


CommandName = Annotated[
    str | None,
    typer.Argument(metavar="COMMAND", help="Name of a command.", autocompletion=_complete),
]


def help_(context: typer.Context, command: CommandName = None) -> None:
    """Show the help of dspark or of one command."""
    page = ["--help"] if command is None else [command, "--help"]
    context.find_root().command.main(page, prog_name="dspark", standalone_mode=False)
