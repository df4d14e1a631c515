"""The pairs that dspark knows, from pairs.toml. Each key is checked against the dataclass that it
fills."""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dspark.config import Schedule
from dspark.errors import CheckpointError
from dspark.hub.catalog.pairs import (
    AssetFolder,
    HeadFacts,
    HubRepo,
    Pair,
    PublishedTau,
    TargetFacts,
    WheelMember,
)

Filled = TypeVar("Filled")
NOT_ESTABLISHED = "not established"


@dataclass(frozen=True, slots=True)
class Catalog:
    """`aliases`: other names of pairs; `families`: names of pairs, the best first."""

    pairs: dict[str, Pair]
    aliases: Mapping[str, str]
    families: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """Shared by all pairs of this target. `origins`: of licence, num_parameters and num_bytes."""

    source: HubRepo | WheelMember
    num_bytes: int
    licence: str | None = None
    num_parameters: int | None = None
    facts: TargetFacts | None = None
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """`origins`: of target, draft and head."""

    description: str
    target: str
    draft: HubRepo | AssetFolder
    head: HeadFacts
    origins: Mapping[str, str]
    published: PublishedTau | None = None
    shown_schedule: Schedule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    targets: Mapping[str, _Target]
    pairs: Mapping[str, _Pair]
    aliases: Mapping[str, str]
    families: Mapping[str, tuple[str, ...]]


def read_catalog(text: str, name: str = "pairs.toml") -> Catalog:
    """Raises CheckpointError naming the entry and the key that is missing, unknown or wrong."""
    try:
        file = _filled(_File, tomllib.loads(text), "")
        pairs = {key: _joined(key, each, file.targets) for key, each in file.pairs.items()}
        _check_names("aliases", {key: (each,) for key, each in file.aliases.items()}, pairs)
        _check_names("families", file.families, pairs)
        return Catalog(pairs, file.aliases, file.families)
    except tomllib.TOMLDecodeError as error:
        raise CheckpointError(f"{name} is not TOML ({error})", "Fix the line it names.") from error
    except _Wrong as error:
        raise CheckpointError(f"{name}: {error}", "Fix or remove that entry.") from error


class _Wrong(Exception):
    def __init__(self, place: str, what: str) -> None:
        super().__init__(f"{place.removeprefix('.') or 'it'} {what}")


def _check_names(
    place: str, names: Mapping[str, tuple[str, ...]], pairs: Mapping[str, Pair]
) -> None:
    for key, meant in names.items():
        if unknown := {*meant} - pairs.keys():
            raise _Wrong(f"{place}.{key}", f"names {min(unknown)!r}, which is not a pair")
        if key in pairs:
            raise _Wrong(f"{place}.{key}", "is also the name of a pair")


def _joined(name: str, entry: _Pair, targets: Mapping[str, _Target]) -> Pair:
    if entry.target not in targets:
        raise _Wrong(f"pairs.{name}.target", f"names {entry.target!r}, which is not a target")
    target, source = targets[entry.target], targets[entry.target].source
    if isinstance(source, HubRepo):
        source = replace(source, num_bytes=target.num_bytes, licence=target.licence)
    of_target = {"num_bytes": "target_num_bytes"}
    unknown = dict.fromkeys(("licence", "num_parameters", "target_num_bytes"), NOT_ESTABLISHED)
    stated = {of_target.get(key, key): origin for key, origin in target.origins.items()}
    return Pair(
        name=name,
        description=entry.description,
        licence=target.licence,
        target=source,
        draft=entry.draft,
        num_parameters=target.num_parameters,
        target_num_bytes=target.num_bytes,
        origins=unknown | stated | dict(entry.origins),
        facts=target.facts,
        head=entry.head,
        published=entry.published,
        shown_schedule=entry.shown_schedule,
    )


@cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _filled(kind: type[Filled], raw: Any, place: str) -> Filled:
    assert is_dataclass(kind)
    if not isinstance(raw, dict):
        raise _Wrong(place, "is not a table")
    if unknown := raw.keys() - _types(kind):
        raise _Wrong(f"{place}.{min(unknown)}", "is not a known key")
    for each in fields(kind):
        is_needed = each.default is MISSING and each.default_factory is MISSING
        if is_needed and each.name not in raw:
            raise _Wrong(place, f"lacks {each.name}")
    values = {key: _value(_types(kind)[key], value, f"{place}.{key}") for key, value in raw.items()}
    return kind(**values)


def _value(kind: Any, value: Any, place: str) -> Any:
    if get_origin(kind) in (Union, UnionType):
        kind = _of_union(kind, value)
    origin, of = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _filled(kind, value, place)  # type: ignore[arg-type]  # a class, not an instance
    if origin is Literal and value in of:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_value(of[0], each, place) for each in value)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        return {key: _value(of[1], each, f"{place}.{key}") for key, each in value.items()}
    if isinstance(kind, type) and issubclass(kind, StrEnum) and value in [*kind]:
        return kind(value)
    if type(value) is kind:
        return value
    raise _Wrong(place, f"is {str(value)[:60]!r}, not {_told(kind)}")


def _of_union(kind: Any, value: Any) -> Any:
    """The member that is meant; of several tables, the one whose first key is there."""
    kinds = [each for each in get_args(kind) if each is not NoneType]
    keys = value if isinstance(value, dict) else {}
    tables = (each for each in kinds if is_dataclass(each) and fields(each)[0].name in keys)
    return next(tables, kinds[0])


def _told(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return f"one of {', '.join(kind)}"
    return {str: "a text", int: "a whole number"}.get(kind, "a list" if get_args(kind) else "that")
