"""The command tree: one file per command, none of which imports torch before it runs."""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from dspark import __version__

app = typer.Typer(
    name="dspark",
    help="Chat with local models through DSpark speculative decoding.",
    pretty_exceptions_enable=False,
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"dspark {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def dspark(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error arose (also DSPARK_DEBUG=1).")
    ] = False,
) -> None:
    """Chat with local models through DSpark speculative decoding."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _name in ("chat", "generate", "bench", "graft", "pull", "list", "show", "rm", "doctor"):
    _module = f"dspark_cli.commands.{'list_' if _name == 'list' else _name}"
    if find_spec(_module):
        app.command(_name)(getattr(import_module(_module), _module.rpartition(".")[2]))


def invoke(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; raises what went wrong."""
    command = typer.main.get_command(app)
    code = command.main(args=list(arguments), prog_name="dspark", standalone_mode=False)
    if code == 130:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0
