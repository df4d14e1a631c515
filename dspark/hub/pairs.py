"""A pair as files on disk."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PairFiles:
    """Directories of a target and of its head (None: plain decoding only)."""

    name: str
    target: Path
    draft: Path | None
