"""The command tree: one file per command, none of which imports torch before it runs."""

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from dspark import __version__
from dspark_cli.command import Command, Group, examples
from dspark_cli.commands import (
    bench,
    chat,
    convert,
    doctor,
    generate,
    graft,
    help_,
    list_,
    probe,
    profile,
    pull,
    race,
    replay,
    rm,
    serve,
    show,
)
from dspark_cli.errors import ExitCode

app = typer.Typer(
    name="dspark",
    cls=Group,
    help="Chat with local models through DSpark speculative decoding.",
    epilog=examples("dspark chat", 'dspark generate "Why is the sky blue?"', "dspark help bench"),
    context_settings={"help_option_names": ["-h", "--help"]},
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
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", expose_value=False, help="Show the traceback of an error."),
    ] = False,
) -> None:
    """Chat with local models through DSpark speculative decoding."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


COMMANDS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "chat": (chat.chat, chat.EXAMPLES),
    "generate": (generate.generate, generate.EXAMPLES),
    "race": (race.race, race.EXAMPLES),
    "replay": (replay.replay, replay.EXAMPLES),
    "bench": (bench.bench, bench.EXAMPLES),
    "serve": (serve.serve, serve.EXAMPLES),
    "graft": (graft.graft, graft.EXAMPLES),
    "pull": (pull.pull, pull.EXAMPLES),
    "list": (list_.list_, list_.EXAMPLES),
    "show": (show.show, show.EXAMPLES),
    "rm": (rm.rm, rm.EXAMPLES),
    "convert": (convert.convert, convert.EXAMPLES),
    "profile": (profile.profile, profile.EXAMPLES),
    "probe": (probe.probe, probe.EXAMPLES),
    "doctor": (doctor.doctor, doctor.EXAMPLES),
    "help": (help_.help_, help_.EXAMPLES),
}
for _name, (_function, _examples) in COMMANDS.items():
    app.command(_name, cls=Command, epilog=examples(*_examples))(_function)


def invoke(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; raises its error."""
    command = typer.main.get_command(app)
    code = command.main(args=list(arguments), prog_name="dspark", standalone_mode=False)
    if code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0
