"""Entry point of `dspark`: every outcome becomes an exit code, and Ctrl+C is met from the start.

Imports stand inside functions because Ctrl+C during an import must end like any other.
"""

import sys
from collections.abc import Sequence


def main() -> None:
    sys.unraisablehook = _pass_interrupt_on
    code = run(sys.argv[1:])
    _default_interrupt()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    try:
        from dspark_cli.app import invoke

        code = invoke(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        code = 1
    except (Exception, KeyboardInterrupt) as error:
        code = _report(error, arguments)
    _drop_unwritable_output()
    return code


def _report(error: BaseException, arguments: Sequence[str]) -> int:
    import os

    from dspark_cli.errors import exit_code, report

    report(error, is_debug="--debug" in arguments or bool(os.environ.get("DSPARK_DEBUG")))
    return exit_code(error)


def _pass_interrupt_on(failure: "sys.UnraisableHookArgs") -> None:
    """Python merely prints a Ctrl+C that falls into a destructor; raise it again."""
    if isinstance(failure.exc_value, KeyboardInterrupt):
        import _thread

        _thread.interrupt_main()
    else:
        sys.__unraisablehook__(failure)


def _drop_unwritable_output() -> None:
    """Keep the interpreter's own last flush from failing aloud."""
    import os

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _default_interrupt() -> None:
    """From here on only threads are left to wait for, and Ctrl+C may end them without a word."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
