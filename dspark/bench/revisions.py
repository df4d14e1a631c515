"""Which revision of a model's files was measured."""

from pathlib import Path

from dspark.hub.catalog.find import PAIRS
from dspark.hub.catalog.pairs import PairFiles, WheelMember

SNAPSHOTS = "snapshots"  # of the Hugging Face cache: .../snapshots/<revision>


def revision_of(folder: Path) -> str | None:
    """None for a folder that states none."""
    parts = folder.parts
    if SNAPSHOTS in parts[:-1]:
        return parts[len(parts) - 1 - parts[::-1].index(SNAPSHOTS) + 1]
    return None


def revisions(files: PairFiles) -> dict[str, str | None]:
    """Of target and head. What comes with dspark or in a package has their version."""
    pair = PAIRS.get(files.name)
    target = revision_of(files.target)
    if target is None and pair is not None and isinstance(pair.target, WheelMember):
        target = f"{pair.target.package} {pair.target.version}"
    head = None if files.draft is None else revision_of(files.draft)
    return {"target": target, "head": head}
