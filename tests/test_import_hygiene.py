"""Start-up is a feature: what must not be imported, and how long --help may take."""

import os
import subprocess
import sys

import pytest

from dspark_cli.app import app

HEAVY = ("torch", "transformers", "textual", "numpy", "huggingface_hub", "httpx")
MARK = "loaded:"
COMMANDS = [command.name for command in app.registered_commands]


def heavy_modules_after(code: str, heavy: tuple[str, ...] = HEAVY) -> str:
    """Names of heavy modules that a fresh interpreter has loaded after running this."""
    found = f"[name for name in {heavy!r} if name in sys.modules]"
    report = f"print({MARK!r}, *{found}, file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{report}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    return result.stderr.rpartition(MARK)[2].strip()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []], ids=str)
def test_starting_the_command_line_imports_nothing_heavy(arguments):
    code = f"from dspark_cli.main import run\nassert run({arguments!r}) == 0"
    assert heavy_modules_after(code) == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_imports_nothing_heavy(command):
    code = f"from dspark_cli.main import run\nassert run([{command!r}, '--help']) == 0"
    assert heavy_modules_after(code) == ""


def test_completing_a_pair_imports_nothing_heavy():
    code = "from dspark_cli.options import complete_pair\nassert complete_pair('dem') == ['demo']"
    assert heavy_modules_after(code) == ""


@pytest.mark.parametrize(
    "module", ["dspark", "dspark.errors", "dspark.config", "dspark.events", "dspark.bench.prompts"]
)
def test_the_contracts_import_nothing_heavy(module):
    assert heavy_modules_after(f"import {module}") == ""


@pytest.mark.parametrize("module", ["dspark.engine.session", "dspark.hub", "dspark.bench.runner"])
def test_the_library_knows_no_terminal(module):
    code = f"import {module}\nassert not {{'typer', 'textual'}} & set(sys.modules)"
    heavy_modules_after(code)


COMPILERS = ("torch._dynamo", "torch._inductor", "sympy")
HEAVY_AT_LOADING = ("transformers", "triton", "huggingface_hub", "PIL", "httpx")


@pytest.mark.parametrize("draft", ["head", "none", "lookup"])
def test_an_answer_of_a_dense_pair_needs_no_model_code(draft, tiny_chat_dir, make_tiny_head):
    """Nor a compiler: they take longer to import than the answer takes."""
    chosen = str(make_tiny_head(tiny_chat_dir)) if draft == "head" else draft
    pair = ["--target", str(tiny_chat_dir), "--draft", chosen, "--device", "cpu"]
    arguments = ["generate", "Hi", *pair, "--max-tokens", "4"]
    code = f"from dspark_cli.main import run\nassert run({arguments!r}) == 0"
    slow = (*COMPILERS, *HEAVY_AT_LOADING)
    assert heavy_modules_after(code, slow) == ""


SMALLEST = """
import typer
app = typer.Typer()
app.command("one")(lambda: None)
app.command("two")(lambda: None)
app(["--help"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="processor time of a child is not to be had")
def test_help_comes_at_once():
    """Within twice the processor time of the smallest Typer help, best of five each."""
    turns = [(_seconds("-c", SMALLEST), _seconds("-m", "dspark_cli", "--help")) for _ in range(5)]
    smallest, ours = map(min, zip(*turns, strict=True))
    assert ours < 2 * smallest


def _seconds(*arguments):
    import resource

    # compiled files are kept, as after an installation
    kept = {name: value for name, value in os.environ.items() if "BYTECODE" not in name}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], env=kept, stdout=subprocess.DEVNULL, timeout=60, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
