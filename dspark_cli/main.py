"""Entry point of `dspark`: every outcome becomes an exit code; Ctrl+C works from the start.

Imports stand inside functions because Ctrl+C during an import must end like any other.
"""

import sys
from collections.abc import Callable, Sequence

# A thread may be loading, fetching or in the middle of a round. The interpreter would wait for it
# and then unload torch, which takes seconds. Nothing is lost: complete files are renamed into
# place, and partial downloads resume.
ENDED_AT_ONCE = ("chat", "generate")


def main() -> None:
    import os

    sys.unraisablehook = _pass_interrupt_on
    _yield_busy_cores()
    _quiet_libraries()
    code = run(sys.argv[1:], _watch_interrupts())
    _default_interrupt()
    if command_of(sys.argv[1:]) in ENDED_AT_ONCE:
        os._exit(code)
    sys.exit(code)


def command_of(arguments: Sequence[str]) -> str:
    return next((word for word in arguments if not word.startswith("-")), "")


def run(arguments: Sequence[str], was_interrupted: Callable[[], bool] = lambda: False) -> int:
    try:
        from dspark_cli.app import invoke

        code = invoke(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        code = 1
    except (Exception, KeyboardInterrupt) as error:
        code = _report(KeyboardInterrupt() if was_interrupted() else error, arguments)
    _drop_unwritable_output()
    return code


def _yield_busy_cores() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user chose otherwise. torch's libgomp
    spins for seconds, so next to a busy process every wait lasts that process's time slice. The
    variable is read when torch loads."""
    import os

    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _quiet_libraries() -> None:
    """Silence messages and progress bars of transformers and the hub's library, unless the user
    enabled them. Both read these variables at import."""
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _report(error: BaseException, arguments: Sequence[str]) -> int:
    import os

    from dspark_cli.errors import exit_code, report

    options = list(arguments)[: [*arguments, "--"].index("--")]
    report(error, is_debug="--debug" in options or bool(os.environ.get("DSPARK_DEBUG")))
    return exit_code(error)


def _watch_interrupts() -> Callable[[], bool]:
    """Returns a check for Ctrl+C: a half-done import may turn it into any other error."""
    import os
    import signal

    if os.name == "nt":
        return lambda: False
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def was_interrupted() -> bool:
        try:
            return signal.SIGINT in os.read(reader, 4096)
        except BlockingIOError:
            return False

    return was_interrupted


def _pass_interrupt_on(failure: "sys.UnraisableHookArgs") -> None:
    """Python only prints a Ctrl+C that arrives in a destructor; send it again after that."""
    if isinstance(failure.exc_value, KeyboardInterrupt):
        import os
        import signal
        from threading import Timer

        Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(failure)


def _drop_unwritable_output() -> None:
    """Keep the interpreter's final flush from printing an error."""
    import os

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _default_interrupt() -> None:
    """Only threads are left to wait for, so Ctrl+C may end them silently."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
