"""Several heads on one target, with the target's weights read once."""

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark.bench.config import ARMS
from dspark.checkpoints.deepspec import read_draft_config
from dspark.checkpoints.head_config import HeadConfig
from dspark.config import Algorithm, EngineConfig, Headless, RuntimeConfig
from dspark.drafters.kinds import trained_parameters
from dspark.engine.session import Session, open_session
from dspark.errors import InputError
from dspark.events import LoadProgress
from dspark.hub.catalog.pairs import PairFiles


@dataclass(frozen=True, slots=True)
class NamedHead:
    """A head on disk, or a drafter that needs none, with its name in reports."""

    name: str
    source: Path | Headless


@dataclass(frozen=True, slots=True)
class OpenHead:
    """A loaded head, or a drafter without one; `parameters` excludes the target's tables.

    `training` is the record of dspark graft in the head's config.json; empty for other heads.
    """

    name: str
    folder: Path | None
    algorithm: Algorithm | Headless
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
    shapes = [_shape(head.source) for head in heads]
    tapped = {layer for shape in shapes if shape for layer in shape.target_layer_ids}
    tap_layers = tuple(sorted(tapped))
    alone = PairFiles(target.name, target.target, None)
    plain = yield from open_session(alone, runtime, config, tap_layers=tap_layers)
    opened = []
    for index, (head, shape) in enumerate(zip(heads, shapes, strict=True)):
        yield LoadProgress(f"reading {head.name}", index, len(heads))
        session = plain.with_head(head.name, head.source, tap_layers)
        opened.append(_open_head(head, shape, session))
    return OpenHeads(plain, tuple(opened))


def pair_heads(session: Session, head: Path | None, *, with_lookup: bool) -> OpenHeads:
    """An open pair with its own drafter, called `dspark`, and n-gram lookup beside it if asked."""
    if not session.has_drafter:
        raise InputError(
            f"{session.name} has no head to measure",
            "Name one with --draft HEAD, or measure --draft lookup.",
        )
    config = getattr(session.engine.drafter, "config", None)
    if isinstance(config, HeadConfig):
        training = _training(head) if head is not None and head.is_dir() else {}
        facts = (config.algorithm, trained_parameters(config), training)
        own = OpenHead(ARMS[1], head, *facts, session)
    else:
        own = OpenHead(ARMS[1], head, "lookup" if head is None else "dspark", 0, {}, session)
    if not with_lookup or own.algorithm == "lookup":
        return OpenHeads(session, (own,))
    beside = session.with_head("lookup", "lookup", ())
    return OpenHeads(session, (own, OpenHead("lookup", None, "lookup", 0, {}, beside)))


def _shape(source: Path | Headless) -> HeadConfig | None:
    return read_draft_config(source) if isinstance(source, Path) else None


def _open_head(head: NamedHead, shape: HeadConfig | None, session: Session) -> OpenHead:
    if not isinstance(head.source, Path):
        return OpenHead(head.name, None, head.source, 0, {}, session)
    assert shape is not None, "every head has a config"
    parameters, training = trained_parameters(shape), _training(head.source)
    return OpenHead(head.name, head.source, shape.algorithm, parameters, training, session)


def _training(folder: Path) -> dict[str, Any]:
    noted: dict[str, Any] = json.loads((folder / "config.json").read_text()).get("graft", {})
    return noted
