"""Sections, notices and peers as parts of the JSON document of `dspark bench`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dspark.bench.document import figure_object, head_object
from dspark.bench.encode import prompt_format
from dspark.bench.notices import Notice, expectation, notices_of
from dspark.bench.round_time import RoundTime

if TYPE_CHECKING:
    from dspark.bench.floor import Floor
    from dspark.bench.peers.against import PeerFigures
    from dspark.bench.sections import ArmDetails, Section
    from dspark.engine.session import Session


def section_object(
    section: "Section",
    session: "Session",
    floor: "Floor | None",
    of_peers: Sequence[Notice] = (),
) -> dict[str, Any]:
    """Rates in tokens per second, times in seconds."""
    notices = notices_of(section, floor)
    condition, comparison = section.condition, section.comparison
    plain: dict[str, Any] = {"answers": _answers(section.plain)}
    if comparison.is_timed:
        report = comparison.heads[0].report
        plain |= {
            "decode": figure_object(report.plain.decode),
            "end_to_end": figure_object(report.plain.end_to_end),
            "round": _round_object(section.plain.round_time),
        }
    return {
        "condition": {
            "name": condition.name,
            **asdict(condition.sampling),
            "depth": condition.depth,
            "thinking": condition.thinking,
        },
        "acceptance": condition.sampling.acceptance,
        "prompt_format": prompt_format(session, condition),
        "prompt_tokens": section.prompt_tokens,
        "prompts": len(section.prompts),
        "categories_of_prompts": [each.category for each in section.prompts],
        "timed": comparison.is_timed,
        "noise": section.noise.spread,
        "plain": plain,
        "drafters": [
            {
                **head_object(each, comparison.is_timed),
                **_details_object(section.of(each.head.name)),
            }
            for each in comparison.heads
        ],
        "notices": [notice_object(each) for each in notices],
        "expect": expectation(section, (*notices, *of_peers)),
    }


def _details_object(details: "ArmDetails") -> dict[str, Any]:
    reliability = details.reliability
    return {
        "interval": details.interval and list(details.interval),
        "round": _round_object(details.round_time),
        "accepted_lengths": list(details.lengths),
        "reliability": None if reliability is None else [asdict(each) for each in reliability],
        "answers": _answers(details),
    }


def _answers(details: "ArmDetails") -> dict[str, Any]:
    """By prompt, for a later --compare."""
    return {
        "rates": [list(each) for each in details.rates],
        "tokens_rounds": [list(each) for each in details.tokens_rounds],
    }


def _round_object(time: RoundTime | None) -> dict[str, Any] | None:
    return None if time is None else {**asdict(time), "total": time.total}


def floor_object(floor: "Floor | None") -> dict[str, Any] | None:
    return None if floor is None else {**asdict(floor), "seconds": floor.seconds}


def notice_object(notice: Notice) -> dict[str, str]:
    return {"kind": notice.kind, "text": notice.text}


def peer_object(peer: "PeerFigures") -> dict[str, Any]:
    return {
        "name": peer.name,
        "drafts": peer.drafts,
        "decode": figure_object(peer.decode),
        "end_to_end": figure_object(peer.end_to_end),
        "prompts": peer.prompts,
        "like_its_plain": peer.like_its_plain,
        "like_our_plain": peer.like_our_plain,
    }
