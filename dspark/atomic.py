"""Writing files and folders completely or not at all: under another name first, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """A file to write that replaces `path` once complete, with the umask's mode.

    `partial` is on the same disk, by default in the same folder, and has a fixed name, so that the
    leftover of a killed writer is overwritten.
    """
    partial = partial or _temporary(path)
    try:
        yield partial
        share(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """An empty folder to fill that is renamed to `path` once complete; `partial` as above.

    Raises OSError if `path` exists by then.
    """
    partial = partial or _temporary(path)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        os.rename(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def share(path: Path) -> None:
    """Sets the umask's permissions; safetensors and mkstemp write for the owner alone."""
    path.chmod(0o666 & ~_umask())


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _umask() -> int:
    """Read from /proc on Linux; elsewhere set and restored, which other threads might see."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("Umask:")[1].split()[0], 8)
    except (OSError, IndexError, ValueError):
        mask = os.umask(0o077)
        os.umask(mask)
        return mask
