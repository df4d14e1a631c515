"""The whole JSON document of `dspark bench`: the headline of the first condition, and all sections.

At the top stand the figures of the first condition, as they always did; `sections` has every
condition, and `rounds` names the file of raw rounds beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspark.bench.config import BenchConfig
from dspark.bench.document import comparison_document, report_document
from dspark.bench.notices import Notice, notices_of, peer_notices
from dspark.bench.section_document import (
    floor_object,
    notice_object,
    peer_object,
    section_object,
)
from dspark.bench.suites import PromptSet
from dspark.config import EngineConfig

if TYPE_CHECKING:
    from dspark.bench.floor import Floor
    from dspark.bench.heads import OpenHeads
    from dspark.bench.peers.against import Against
    from dspark.bench.sections import Section


@dataclass(frozen=True, slots=True)
class Measured:
    """All that a bench found. `is_pair`: one pair with its own head, not a comparison of heads."""

    sections: "tuple[Section, ...]"
    opened: "OpenHeads"
    prompt_set: PromptSet
    floor: "Floor | None"
    revisions: Mapping[str, str | None]
    against: "Against | None"
    is_pair: bool

    @property
    def is_partial(self) -> bool:
        return any(each.comparison.is_partial for each in self.sections)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """Each once, with its condition where there are several."""
        several = len(self.sections) > 1
        found = [
            Notice(each.kind, f"{section.condition.name}: {each.text}" if several else each.text)
            for section in self.sections
            for each in notices_of(section, self.floor)
        ]
        return (*found, *self.peer_notices)

    @property
    def peer_notices(self) -> tuple[Notice, ...]:
        if self.against is None:
            return ()
        return peer_notices((*self.against.ours, *self.against.peers), self.against.plain_rate)


def whole_document(
    measured: Measured,
    bench: BenchConfig,
    engine: EngineConfig,
    conditions: int,
    command: str,
    rounds: Path | None,
) -> dict[str, Any]:
    """`conditions` is how many were asked for."""
    session, against = measured.opened.plain, measured.against
    is_partial = measured.is_partial or len(measured.sections) < conditions
    return {
        **_headline(measured, bench, engine, command),
        "partial": is_partial,
        "sections": [
            section_object(each, session, measured.floor, measured.peer_notices)
            for each in measured.sections
        ],
        "notices": [notice_object(each) for each in measured.notices],
        "floor": floor_object(measured.floor),
        "peers": None if against is None else _peers_object(against),
        "prompt_set": measured.prompt_set.facts(),
        "revisions": dict(measured.revisions),
        "rounds": None if rounds is None else rounds.name,
    }


def _headline(
    measured: Measured, bench: BenchConfig, engine: EngineConfig, command: str
) -> dict[str, Any]:
    comparison, opened = measured.sections[0].comparison, measured.opened
    if not measured.is_pair:
        return comparison_document(comparison, bench, engine, opened, command)
    session, report = opened.plain, comparison.heads[0].report
    return report_document(report, bench, engine, session.name, session.runtime, command)


def _peers_object(against: "Against") -> dict[str, Any]:
    ours: Sequence[str] = [each.name for each in against.ours]
    return {
        "ours": [peer_object(each) for each in against.ours],
        "engines": [peer_object(each) for each in against.peers],
        "best": against.best.name,
        "over_best": {name: against.over_best(name) for name in ours},
    }
