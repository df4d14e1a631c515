"""How failures are reported: one line on stderr and an exit code, decided here."""

import errno
import sys
import traceback
from enum import IntEnum

import typer

from dspark.chat.control_characters import visible
from dspark.errors import DSparkError, InputError, UnknownNameError, gpu_failure
from dspark_cli.output.tables import fitted

REPORT_HINT = "This is a bug: run the command again with --debug and please report the output."


class ExitCode(IntEnum):
    """Every exit code of `dspark`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REGRESSED = 3  # dspark bench --compare found a figure that is worse by more than noise
    INTERRUPTED = 130


def exit_code(error: BaseException) -> ExitCode:
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return ExitCode.INTERRUPTED
    if isinstance(error, InputError | UnknownNameError):
        return ExitCode.USAGE
    if isinstance(error, typer.TyperException):
        return ExitCode(error.exit_code)
    return ExitCode.FAILED


def describe(error: BaseException) -> tuple[str, str]:
    """Message and hint, one line each; the message ends with punctuation."""
    message, hint = (" ".join(part.split()) for part in _message_and_hint(error))
    return message if message.endswith((".", "?", "!")) else f"{message}.", hint


def _message_and_hint(error: BaseException) -> tuple[str, str]:
    if isinstance(error, DSparkError):
        return error.message, error.hint
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted", ""
    if isinstance(error, typer.TyperException):
        return error.format_message(), _help_hint(error)
    if _is_out_of_memory(error):
        return "out of memory", "Close other programs, or use a smaller pair or --dtype bfloat16."
    if (failure := gpu_failure(error)) is not None:
        return failure.message, failure.hint
    if isinstance(error, OSError):
        return _describe_os_error(error)
    return f"{type(error).__name__}: {error}", REPORT_HINT


def _help_hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"See {context.command_path if context else 'dspark'} --help."


def _is_out_of_memory(error: BaseException) -> bool:
    # recognised by name and message, since importing torch takes a second
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _describe_os_error(error: OSError) -> tuple[str, str]:
    where = f": {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}", "Free some space and run the same command again."
    if error.errno is None:
        return f"{type(error).__name__}: {error}", REPORT_HINT
    return f"{error.strerror or type(error).__name__}{where}", "Check the path and its permissions."


def report(error: BaseException, is_debug: bool) -> None:
    if is_debug and not isinstance(error, typer.TyperException):
        traceback.print_exception(error)
    message, hint = describe(error)
    line = fitted(visible(f"dspark: {message} {hint}").rstrip(), sys.stderr)
    print(line, file=sys.stderr, flush=True)
    for line in (line for note in getattr(error, "__notes__", ()) for line in note.splitlines()):
        print(visible(line), file=sys.stderr, flush=True)
