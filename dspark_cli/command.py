"""Shared behaviour of all commands: --debug anywhere, examples, help without type names."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from dspark.errors import InputError
from dspark_cli.output.tables import terminal_width

NARROWEST_PANELS = 76
METAVARS: Mapping[object, str] = {int: "N", float: "NUMBER", str: "TEXT"}


class Command(TyperCommand):
    """Accepts --debug as `dspark` itself does, and refuses a file after --json."""

    def get_params(self, ctx: Any) -> list[Any]:
        debug = [each for each in ctx.find_root().command.params if each.name == "debug"]
        return _readable([*super().get_params(ctx), *debug])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _refuse_file_for_json(args, has_output=any(each.name == "output" for each in self.params))
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if terminal_width() < NARROWEST_PANELS:  # Rich would break option names
            self.rich_markup_mode = None
        super().format_help(ctx, formatter)


class Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _readable(super().get_params(ctx))


def examples(*lines: str) -> str:
    """The end of a help page, with brackets escaped from markup."""
    escaped = "\n".join(lines).replace("[", r"\[")
    return f"\b\nExamples:\n{textwrap.indent(escaped, '  ')}"


def _readable(params: list[Any]) -> list[Any]:
    """No metavar for flags, choices that break between words, N instead of <int range>."""
    for param in params:
        if param.param_type_name == "option" and param.metavar is None:
            param.metavar = _metavar(param)
    return params


def _metavar(option: Any) -> str | None:
    kind = option.type_descriptor
    if option.is_flag:
        return ""
    if kind.is_choice:
        return " | ".join(map(str, kind.choices))
    return METAVARS.get(kind.annotation)


def _refuse_file_for_json(args: Sequence[str], *, has_output: bool) -> None:
    """--json once took a file, which must not be mistaken for a pair."""
    for option, value in itertools.pairwise([*args, ""]):
        is_file = value.lower().endswith((".json", ".jsonl"))
        if option.startswith("--json=") or (option == "--json" and is_file):
            raise InputError(
                "--json takes no file: it prints one JSON object on stdout",
                "Use --output FILE." if has_output else "Redirect it: --json > FILE",
            )
