"""docs/cli.md: every command with its options, from the code. `make cli` writes it."""

from collections.abc import Iterator
from typing import Any

import typer

from dspark_cli.app import COMMANDS, app
from dspark_cli.errors import ExitCode

HEADER = """\
# Commands
<!-- Written by `make cli`; a test compares. -->
`dspark help COMMAND` prints the same in the terminal. `--debug` shows the traceback of an error
with any command. What a command answers goes to stdout, everything else to stderr.
"""
EXIT_CODES = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "failed",
    ExitCode.USAGE: "wrong usage",
    ExitCode.REGRESSED: "`dspark bench --compare` found a figure that is worse by more than noise",
    ExitCode.INTERRUPTED: "interrupted",
}


def cli_markdown() -> str:
    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name="dspark")
    lines = [HEADER, "| exit code | means |", "|---|---|"]
    lines += [f"| {code.value} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    for name, (_, examples) in COMMANDS.items():
        lines += _command(group.get_command(context, name), context, name, examples)
    return "\n".join(lines) + "\n"


def _command(command: Any, parent: Any, name: str, examples: tuple[str, ...]) -> Iterator[str]:
    context = typer.Context(command, info_name=name, parent=parent)
    params = [p for p in command.get_params(context) if p.name != "debug" and not p.hidden]
    yield f"\n## dspark {name}"
    yield " ".join((command.help or "").split())
    yield "\n```\n" + "\n".join(examples) + "\n```"
    options = [p for p in params if p.name != "help"]
    if not options:
        return
    yield "\n| option | meaning | default |\n|---|---|---|"
    for param in options:
        yield f"| {_names(param)} | {_cell(param.help or '')} | {_default(param)} |"


def _names(param: Any) -> str:
    """An argument by its name, an option by all its spellings with what it takes."""
    if param.param_type_name == "argument":
        return f"`{param.metavar or param.name.upper()}`"
    names = ", ".join(f"`{each}`" for each in (*param.opts, *param.secondary_opts))
    return f"{names} {_cell(param.metavar)}" if param.metavar else names


def _default(param: Any) -> str:
    if isinstance(param.show_default, str):
        return _cell(param.show_default)
    default = param.default
    if default is None or default is False or callable(default) or default == "":
        return ""
    return _cell("yes" if default is True else str(default))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(cli_markdown(), end="")
