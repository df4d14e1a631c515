"""Help is found by every spelling, ends with examples that work, and fits the terminal."""

import re
import shlex

import pytest
import typer

from dspark_cli.app import app

GROUP = typer.main.get_command(app)
COMMANDS = list(GROUP.commands)  # type: ignore[attr-defined]  # a group


def examples_of(command: str) -> list[str]:
    epilog = GROUP.commands[command].epilog  # type: ignore[attr-defined]
    return [line.strip().replace("\\[", "[") for line in epilog.splitlines()[2:]]


EXAMPLES = [line for command in COMMANDS for line in examples_of(command)]


@pytest.mark.parametrize("arguments", [["-h"], ["help"], ["--help"], []], ids=str)
def test_every_spelling_shows_the_same_page(dspark, arguments):
    outcome = dspark(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.strip() == dspark("--help").out.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_same_three(dspark, command):
    page = dspark(command, "--help").out
    assert f"Usage: dspark {command}" in page
    assert dspark(command, "-h").out == page
    assert dspark("help", command).out == page


def test_help_of_what_is_no_command_says_so(dspark):
    outcome = dspark("help", "chatt")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert "Did you mean 'chat'?" in outcome.err


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_ends_with_an_example_of_it(dspark, command):
    lines = examples_of(command)
    assert lines and all(line.startswith(f"dspark {command}") for line in lines)
    page = dspark(command, "--help").out
    assert page.rstrip().endswith(lines[-1])


@pytest.mark.parametrize("line", EXAMPLES)
def test_each_example_is_a_command_line_that_parses(line):
    program, name, *rest = shlex.split(line.split(" < ")[0].split(" > ")[0])
    command = GROUP.commands[name]  # type: ignore[attr-defined]
    parent = GROUP.make_context("dspark", [name, *rest])
    with command.make_context(name, list(rest), parent=parent) as context:
        assert program == "dspark" and context.params


def test_an_example_that_does_not_parse_would_be_found():
    with pytest.raises(typer.TyperException):
        test_each_example_is_a_command_line_that_parses("dspark chat --nonsense")


@pytest.mark.parametrize("columns", ["80", "60"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_fits_and_breaks_no_word(dspark, command, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    page = dspark(command, "--help").out
    options = page.partition("Examples:")[0]  # a command line is not broken for its length
    assert max(map(len, options.splitlines())) <= int(columns)
    assert "\b" not in page
    assert "<bool>" not in page and "range>" not in page
    words = set(re.findall(r"\w+", page))
    monkeypatch.setenv("COLUMNS", "300")
    assert words <= set(re.findall(r"\w+", dspark(command, "--help").out))


def test_json_is_a_flag_wherever_it_is():
    options = {
        name: option
        for name, command in GROUP.commands.items()  # type: ignore[attr-defined]
        for option in command.params
        if "--json" in option.opts
    }
    assert all(option.is_flag for option in options.values())
    assert set(options) == set(COMMANDS) - {"chat", "replay", "help"}


def test_long_pages_are_in_panels(dspark):
    page = dspark("graft", "--help").out
    for panel in ("Data", "Head", "Loss", "Optimizer", "Running", "Output"):
        assert f"─ {panel} ─" in page
    options = dspark("chat", "--help").out.split("─ Options ─")[1].split("╰")[0]
    assert options.count("--") < 10


@pytest.mark.parametrize(
    "arguments",
    [["--debug", "generate", "Hi"], ["generate", "--debug", "Hi"], ["generate", "Hi", "--debug"]],
)
def test_debug_is_taken_at_any_place(dspark, fake_session, arguments):
    fake_session.failure = ValueError("odd")
    outcome = dspark(*arguments)
    assert (outcome.code, fake_session.asked != []) == (1, True)
    assert outcome.err.startswith("Traceback")


def test_debug_behind_two_dashes_is_the_prompt(dspark, fake_session):
    fake_session.failure = ValueError("odd")
    outcome = dspark("generate", "--raw", "--", "--debug")
    assert fake_session.asked[0][0] == [ord(character) for character in "--debug"]
    assert "Traceback" not in outcome.err


def test_a_bugs_hint_works(dspark, fake_session):
    fake_session.failure = ValueError("odd")
    assert "run the command again with --debug" in dspark("generate", "Hi").err
