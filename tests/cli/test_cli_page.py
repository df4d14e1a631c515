"""docs/cli.md is what the code says."""

from pathlib import Path

from dspark_cli.app import COMMANDS
from dspark_cli.cli_page import EXIT_CODES, cli_markdown
from dspark_cli.errors import ExitCode

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text("utf-8") == cli_markdown(), "run `make cli`"


def test_every_command_and_exit_code_is_there():
    page = cli_markdown()
    assert all(f"\n## dspark {name}\n" in page for name in COMMANDS)
    assert set(EXIT_CODES) == set(ExitCode)


def test_options_have_their_defaults_and_choices():
    page = cli_markdown()
    assert "| `--trials` N | Runs over all prompts. | 3 |" in page
    assert "| `--dtype` auto \\| float32 \\| bfloat16 \\| float16 | Number format" in page
    assert "`--debug`" not in page.partition("## dspark chat")[2]
