"""Finds an existing head for a base, attaches it, probes it, and keeps the pair."""

import itertools
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dspark import hub
from dspark.checkpoints.model_folder import read_config
from dspark.config import RuntimeConfig
from dspark.errors import InputError, PairMismatchError
from dspark.events import FetchProgress, LoadProgress
from dspark.graft.data.same_tokenizer import same_tokenizer
from dspark.hub.catalog.find import FAMILIES
from dspark.hub.catalog.pairs import (
    AssetFolder,
    HubRepo,
    LocalFolder,
    OtherPair,
    Pair,
    PairFiles,
)
from dspark.hub.catalog.user_pairs import registered_as
from dspark.hub.sources.hf_download import fetch_repo
from dspark.probe.self_test import ProbeReport, probe


@dataclass(frozen=True, slots=True)
class HeadMatch:
    """The released pair whose head fits a base; None if none does.

    Then `nearest` is the pair with the fewest differences, and `differences` lists them.
    """

    pair: Pair | None
    is_tokenizer_compared: bool = False
    nearest: Pair | None = None
    differences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AttachJob:
    """`base` and `head` are the user's names; `target` and `draft` are their folders."""

    base: str
    target: Path
    head: str
    draft: Path
    is_released: bool = False
    name: str | None = None
    runtime: RuntimeConfig = RuntimeConfig()
    is_forced: bool = False


@dataclass(frozen=True, slots=True)
class Registered:
    """The pair has a name now; `is_new` is False if it had one before."""

    name: str
    is_new: bool


AttachEvent = LoadProgress | ProbeReport


def match_head(base: Path) -> HeadMatch:
    """Compares the sizes, then the tokenizers."""
    base_sizes = _sizes(read_config(base))
    nearest: tuple[Pair, tuple[str, ...]] | None = None
    for pair in _candidates():
        differences = _differences(base_sizes, pair)
        is_same = same_tokenizer(base, pair) if not differences else None
        if is_same is False:
            differences = ("its tokenizer differs",)
        if not differences:
            return HeadMatch(pair, is_tokenizer_compared=is_same is True)
        if nearest is None or len(differences) < len(nearest[1]):
            nearest = pair, differences
    return HeadMatch(None) if nearest is None else HeadMatch(None, False, *nearest)


def released_head(base: str, target: Path) -> Path | None:
    """The head on disk that was released for this base, or for one of the same shape."""
    files = hub.locate(base) if hub.known_pair(base) else None
    if files is not None:
        return files.draft
    pair = match_head(target).pair
    return None if pair is None else hub.draft_folder(pair)


def fetch_head(pair: Pair) -> Generator[FetchProgress, None, Path]:
    """Brings the head alone, and returns its folder."""
    if isinstance(pair.draft, HubRepo) and hub.draft_folder(pair) is None:
        yield from fetch_repo(pair.draft, f"the head of {pair.name}")
    folder = hub.draft_folder(pair)
    if folder is None:
        raise InputError(f"the head of {pair.name} is not on disk", "Train with --train.")
    return folder


def attach(job: AttachJob) -> Generator[AttachEvent, None, Registered]:
    """Raises PairMismatchError if the head does not fit, or is misread."""
    report = yield from probe(PairFiles(job.base, job.target, job.draft), job.runtime)
    yield report
    if report.fault is not None and not job.is_forced:
        raise PairMismatchError(
            f"the head was not kept: {report.fault}",
            "Fix its config.json, keep it as it is with --force, or train one with --train.",
        )
    return keep_pair(job.name, job.base if job.is_released else job.head, job.base, job.head)


def keep_pair(name: str | None, default: str, base: str, head: str) -> Registered:
    """Register under `name`, or else under a free name derived from `default`.

    A pair that already has a name keeps it, unless another is given.
    """
    target, draft = _source_of(base, "target"), _source_of(head, "draft")
    is_shipped = target == draft and hub.known_pair(base) is not None
    target_source = base if is_shipped else registered_as(target, draft)
    if target_source is not None and name in (None, target_source):
        return Registered(target_source, is_new=False)
    name = name or _free_name(default)
    hub.register(name, target, draft)
    return Registered(name, is_new=True)


def check_name(name: str, head: Path) -> None:
    """Raises InputError, before hours of training, if another pair has the name."""
    known = hub.known_pair(name)
    if known is not None and known.draft != LocalFolder(head.resolve()):
        raise InputError(f"a pair named {name} already exists", "Choose another --name.")


def _source_of(text: str, role: Literal["target", "draft"]) -> str:
    """The source that a user's own pair was registered with; anything else unchanged."""
    pair = hub.registered_pairs().get(text)
    source = None if pair is None else getattr(pair, role)
    if isinstance(source, LocalFolder):
        return str(source.path)
    if isinstance(source, HubRepo):
        return source.repo_id
    return source.name if isinstance(source, OtherPair) else text


def _free_name(text: str) -> str:
    """Derived from the last part of a path, an id or an alias."""
    path = Path(text).expanduser()
    last = path.resolve().name if path.is_dir() else text.rpartition("/")[2]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._") or "pair"
    numbers = itertools.count(2)
    name = plain
    while name in FAMILIES or hub.known_pair(name) is not None:
        name = f"{plain}-{next(numbers)}"
    return name


def _candidates() -> Iterator[Pair]:
    """The pairs whose head can be fetched without its target."""
    for pair in hub.PAIRS.values():
        draft = pair.draft
        in_target = isinstance(draft, HubRepo) and draft.tensor_prefix is not None
        if pair.facts is not None and isinstance(draft, HubRepo | AssetFolder) and not in_target:
            yield pair


def _sizes(config: Mapping[str, Any]) -> dict[str, int | None]:
    text = config.get("text_config", config)
    keys = {"hidden size": "hidden_size", "layers": "num_hidden_layers", "vocabulary": "vocab_size"}
    return {what: text.get(key) for what, key in keys.items()}


def _differences(found: Mapping[str, int | None], pair: Pair) -> tuple[str, ...]:
    assert pair.facts is not None
    head_sizes = {
        "hidden size": pair.facts.hidden_size,
        "layers": pair.facts.num_layers,
        "vocabulary": pair.facts.vocab_size,
    }
    return tuple(
        f"its {what} is {head_sizes[what]:,}, the base's {found[what]}"
        for what in head_sizes
        if found[what] != head_sizes[what]
    )
