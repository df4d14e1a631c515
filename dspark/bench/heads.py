"""Several heads on one target, with the target's weights read once."""

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dspark.checkpoints.deepspec import read_draft_config
from dspark.config import Algorithm, EngineConfig, RuntimeConfig
from dspark.drafters.kinds import trained_parameters
from dspark.engine.session import Session, open_session
from dspark.events import LoadProgress
from dspark.hub.catalog.pairs import PairFiles


@dataclass(frozen=True, slots=True)
class NamedHead:
    """A head on disk, or lookup, with its name in reports."""

    name: str
    folder: Path | None


@dataclass(frozen=True, slots=True)
class OpenHead:
    """A loaded head, or lookup; `parameters` excludes the target's tables.

    `training` is the record of dspark graft in the head's config.json; empty for other heads.
    """

    name: str
    folder: Path | None
    algorithm: Algorithm | Literal["lookup"]
    parameters: int
    training: dict[str, Any]
    session: Session


@dataclass(frozen=True, slots=True)
class OpenHeads:
    """The target alone, for plain decoding, and each head on it."""

    plain: Session
    heads: tuple[OpenHead, ...]

    def close(self) -> None:
        for session in (self.plain, *(head.session for head in self.heads)):
            session.close()


def open_heads(
    target: PairFiles, heads: Sequence[NamedHead], runtime: RuntimeConfig, config: EngineConfig
) -> Generator[LoadProgress, None, OpenHeads]:
    """Yields progress. The head of `target` is left out."""
    shapes = [read_draft_config(head.folder) if head.folder else None for head in heads]
    tapped = {layer for shape in shapes if shape for layer in shape.target_layer_ids}
    tap_layers = tuple(sorted(tapped))
    alone = PairFiles(target.name, target.target, None)
    plain = yield from open_session(alone, runtime, config, tap_layers=tap_layers)
    opened = []
    for index, (head, shape) in enumerate(zip(heads, shapes, strict=True)):
        yield LoadProgress(f"reading {head.name}", index, len(heads))
        opened.append(
            OpenHead(
                name=head.name,
                folder=head.folder,
                algorithm=shape.algorithm if shape else "lookup",
                parameters=trained_parameters(shape) if shape else 0,
                training=_training(head.folder),
                session=plain.with_head(head.name, head.folder, tap_layers),
            )
        )
    return OpenHeads(plain, tuple(opened))


def _training(folder: Path | None) -> dict[str, Any]:
    if folder is None:
        return {}
    noted: dict[str, Any] = json.loads((folder / "config.json").read_text()).get("graft", {})
    return noted
