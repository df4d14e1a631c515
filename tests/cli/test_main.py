"""Every outcome of a command line: its exit code, and one line on stderr for what went wrong."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import typer

from dspark import __version__
from dspark.errors import DSparkError, InputError, UnknownNameError
from dspark_cli.app import app
from dspark_cli.errors import ExitCode, describe, exit_code

COMMANDS = [command.name for command in app.registered_commands]


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DSparkError("it broke", "Mend it."), ExitCode.FAILED, "it broke. Mend it."),
        (DSparkError("it\nbroke."), ExitCode.FAILED, "it broke."),
        (InputError("no prompt", "Give one."), ExitCode.USAGE, "no prompt. Give one."),
        (UnknownNameError("no x"), ExitCode.USAGE, "no x."),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted."),
        (typer.Abort(), ExitCode.INTERRUPTED, "interrupted."),
        (typer.BadParameter("no such thing"), ExitCode.USAGE, "Invalid value: no such thing"),
        (ValueError("odd"), ExitCode.FAILED, "ValueError: odd. This is a bug"),
        (MemoryError(), ExitCode.FAILED, "out of memory. "),
        (OutOfMemoryError("CUDA out of memory"), ExitCode.FAILED, "out of memory. "),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            ExitCode.FAILED,
            "out of memory. ",
        ),
        (
            RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
            ExitCode.FAILED,
            "the GPU failed (Triton Error [CUDA]: an illegal memory access was encountered). Start",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/a/b"),
            ExitCode.FAILED,
            "the disk is full: /a/b. Free some space",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded", "/a/b"),
            ExitCode.FAILED,
            "the disk is full: /a/b. Free some space",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ExitCode.FAILED, "out of memory. Close"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a/b"),
            ExitCode.FAILED,
            "Permission denied: /a/b. Check",
        ),
    ],
)
def test_each_error_has_its_code_and_its_line(error, code, line):
    assert exit_code(error) is code
    assert " ".join(describe(error)).strip().startswith(line)


def test_a_hint_follows_the_message_on_one_line(dspark, fake_session):
    fake_session.failure = DSparkError("it broke", "Mend it.")
    outcome = dspark("generate", "Hi")
    assert (outcome.code, outcome.err) == (1, "dspark: it broke. Mend it.\n")


@pytest.mark.parametrize("switch", ["option", "variable"])
def test_debug_shows_where_the_error_arose(dspark, fake_session, monkeypatch, switch):
    fake_session.failure = ValueError("odd")
    assert "Traceback" not in dspark("generate", "Hi").err
    if switch == "variable":
        monkeypatch.setenv("DSPARK_DEBUG", "1")
    outcome = dspark(*(["--debug"] if switch == "option" else []), "generate", "Hi")
    assert outcome.code == 1
    assert outcome.err.startswith("Traceback")
    assert outcome.err.splitlines()[-1].startswith("dspark: ValueError: odd. This is a bug")


def test_version(dspark):
    outcome = dspark("--version")
    assert (outcome.code, outcome.out) == (0, f"dspark {__version__}\n")


def test_without_arguments_comes_the_help(dspark):
    outcome = dspark()
    assert outcome.code == 0
    assert "Usage" in outcome.out


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"]])
def test_a_wrong_command_line_is_usage(dspark, arguments):
    outcome = dspark(*arguments)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert arguments[0] in outcome.err


def test_all_commands_are_there():
    expected = (
        "chat",
        "generate",
        "race",
        "replay",
        "bench",
        "serve",
        "graft",
        "pull",
        "list",
        "show",
        "rm",
        "convert",
        "profile",
        "probe",
        "doctor",
        "help",
    )
    assert tuple(COMMANDS) == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_renders_with_a_line_for_each_option(dspark, command):
    outcome = dspark(command, "--help")
    assert outcome.code == 0
    assert f"dspark {command}" in outcome.out
    summary = next(
        each.callback.__doc__ for each in app.registered_commands if each.name == command
    )
    assert summary, "a command says what it does"


def run_python(code: str, *arguments: str, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        **more,
    )


INTERRUPT = "os.kill(os.getpid(), signal.SIGINT); time.sleep(30)"
# Python swallows what a destructor raises
INTERRUPT_IN_DESTRUCTOR = """
class Held:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
Held(); time.sleep(30)
"""


@pytest.mark.parametrize("body", [INTERRUPT, INTERRUPT_IN_DESTRUCTOR], ids=["plain", "destructor"])
def test_interrupt_during_an_import_is_one_line(body):
    result = run_python(
        """
        import os, signal, sys, time
        from dspark_cli.main import main

        class Interrupting:
            def find_spec(self, name, path, target=None):
                if name == "dspark.hub":
                    exec(body)

        body = sys.argv.pop(1)
        sys.meta_path.insert(0, Interrupting())
        main()
        """,
        *(body, "generate", "Hi"),
    )
    assert (result.returncode, result.stderr) == (130, "dspark: interrupted.\n")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal to pretend to")
def test_interrupt_while_waiting_for_the_prompt_is_one_line():
    terminal, other_end = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dspark_cli", "generate"],
        stdin=other_end,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "Ctrl+D" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    os.close(terminal)
    os.close(other_end)
    assert (process.returncode, err) == (130, "dspark: interrupted.\n")


def test_other_libraries_are_quiet_unless_asked():
    code = """
        import sys
        from dspark_cli.main import main

        sys.argv = ["dspark", "--version"]
        try:
            main()
        except SystemExit:
            from transformers.utils import logging
            print(logging.get_verbosity() == logging.ERROR, logging.is_progress_bar_enabled())
        """
    names = ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS")
    unset = {name: value for name, value in os.environ.items() if name not in names}
    assert run_python(code, env=unset).stdout.splitlines()[-1] == "True False"
    chosen = unset | dict(zip(names, ("info", "0"), strict=True))
    assert run_python(code, env=chosen).stdout.splitlines()[-1] == "False True"


def test_a_closed_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "dspark_cli", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert result.stderr == ""
    assert result.returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_on_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "dspark_cli", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert result.returncode == 1
    assert result.stderr.startswith("dspark: the disk is full")
    assert result.stderr.count("\n") == 1


def test_the_shell_completes_commands_and_options():
    def complete(words: str, position: int) -> str:
        environment = {
            **os.environ,
            "_DSPARK_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(position),
        }
        return run_python(
            "from dspark_cli.main import main\nmain()", env=environment
        ).stdout.strip()

    assert complete("dspark gen", 1) == "generate"
    assert complete("dspark help gra", 2) == "graft"
    for command in ("chat", "show", "rm", "pull", "bench", "probe", "serve", "graft"):
        assert complete(f"dspark {command} dem", 2) == "demo"
    assert complete("dspark generate --pair qwen3-8b:d", 3) == "qwen3-8b:dflash"
    assert complete("dspark chat --draft loo", 3) == "lookup"
    assert complete("dspark chat --deb", 2) == "--debug"
    assert complete("dspark generate --sch", 2) == "--schedule"


@pytest.mark.parametrize(
    ("chosen", "policy"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "7"}, None)],
    ids=["default", "policy of the user's", "count of the user's"],
)
def test_waiting_threads_yield_unless_the_user_has_chosen(chosen, policy):
    """Read by OpenMP when torch loads, so it must be set before, and by the entry point itself."""
    code = (
        "import os, sys, dspark_cli.main as m; m.run = lambda *a: 0\n"
        "try: m.main()\n"
        "except SystemExit: print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    )
    unset = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**unset, **chosen}, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(policy), "False"]
