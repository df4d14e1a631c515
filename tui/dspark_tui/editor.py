"""The user's own editor for a long prompt."""

import os
import shlex
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from textual.app import App, SuspendNotSupported

from dspark.errors import DSparkError, InputError


def edited(app: App[None], text: str) -> str:
    """The text as $VISUAL or $EDITOR leaves it; the app is off the terminal meanwhile. Raises
    DSparkError."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise InputError("no editor is set", "Set VISUAL or EDITOR, as in EDITOR=nano.")
    with TemporaryDirectory(prefix="dspark-") as folder:
        path = Path(folder, "prompt.md")
        path.write_text(text, encoding="utf-8")
        try:
            with app.suspend():
                _run([*shlex.split(editor), str(path)], editor)
            return path.read_text(encoding="utf-8").removesuffix("\n")
        except SuspendNotSupported:
            raise DSparkError("an editor needs a terminal of its own") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DSparkError(
                f"{editor[:40]} failed: {reason}", "The prompt is as it was."
            ) from None


def _run(command: list[str], editor: str) -> None:
    status = subprocess.run(command, check=False).returncode
    if status:
        raise DSparkError(f"{editor[:40]} ended with status {status}", "The prompt is as it was.")
