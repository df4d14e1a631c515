"""Answers in the open format that docs/rounds.md describes: what was drafted, kept and refused."""

from dataclasses import asdict, fields
from typing import Any, get_args

from dspark.events import (
    DecodeStats,
    Event,
    Finished,
    FinishReason,
    Piece,
    PrefillProgress,
    Round,
    TextDelta,
)

VERSION = 1


def record_of(event: Event | TextDelta) -> dict[str, Any]:
    match event:
        case PrefillProgress():
            return prompt_record(event)
        case Round():
            return round_record(event)
        case TextDelta():
            return _text_record(event)
        case Finished():
            return _finished_record(event)


def prompt_record(event: PrefillProgress) -> dict[str, Any]:
    """Of a prompt's progress; the last one carries the first token."""
    return {
        "version": VERSION,
        "type": "prompt",
        "done": event.done,
        "total": event.total,
        "tokens": [_token(piece) for piece in event.pieces],
    }


def round_record(event: Round) -> dict[str, Any]:
    """Of one draft, verify and accept."""
    return {
        "version": VERSION,
        "type": "round",
        "index": event.index,
        "anchor": event.anchor,
        "drafted": list(event.draft),
        "confidence": None if event.confidence is None else [*event.confidence],
        "verified": event.verified,
        "accepted": event.accepted,
        "next": event.next,
        "tokens": [_token(piece) for piece in event.pieces],
        "rejected": [_token(piece) for piece in event.rejected],
        "context_tokens": event.context_tokens,
        "draft_seconds": event.draft_seconds,
        "verify_seconds": event.verify_seconds,
        "seconds": event.seconds,
        "parked": event.is_parked,
        "draft_cost": event.draft_cost,
        "draft_tokens": event.draft_tokens,
        "expert_reads": event.expert_reads,
        "expert_far": event.expert_far,
        "expert_bytes": event.expert_bytes,
        "accept_seconds": event.accept_seconds,
        "draft_probs": None if event.draft_probs is None else [*event.draft_probs],
        "target_probs": None if event.target_probs is None else [*event.target_probs],
    }


def _text_record(event: TextDelta) -> dict[str, Any]:
    """Of a server that says nothing of rounds."""
    return {
        "version": VERSION,
        "type": "text",
        "tokens": [_token(piece) for piece in event.pieces],
        "seconds": event.seconds,
    }


def _finished_record(event: Finished) -> dict[str, Any]:
    return {
        "version": VERSION,
        "type": "finished",
        "reason": event.reason,
        "token_ids": list(event.token_ids),
        "text": event.text,
        "thinking": event.thinking,
        "tail": event.tail,
        "ends_thinking": event.ends_thinking,
        "stats": asdict(event.stats),
    }


def _token(piece: Piece) -> dict[str, Any]:
    return {
        "id": piece.token_id,
        "text": piece.text,
        "is_draft": piece.is_draft,
        "confidence": piece.confidence,
        "is_thinking": piece.is_thinking,
    }


def read_event(record: dict[str, Any], request_id: int) -> Event | TextDelta:
    """The event that a record states. Raises KeyError, TypeError or ValueError for another
    format or a newer version."""
    match record["type"]:
        case "finished":
            _check_version(record)
            return _read_finished(record, request_id)
        case "text":
            _check_version(record)
            return TextDelta(request_id, _pieces(record["tokens"]), float(record["seconds"]))
    return read_round(record, request_id)


def read_round(record: dict[str, Any], request_id: int) -> PrefillProgress | Round:
    """As `read_event`, for an event that carries tokens of a model whose rounds are told."""
    _check_version(record)
    tokens = _pieces(record["tokens"])
    if record["type"] == "prompt":
        return PrefillProgress(request_id, int(record["done"]), int(record["total"]), tokens)
    return Round(
        request_id=request_id,
        index=int(record["index"]),
        anchor=int(record["anchor"]),
        draft=tuple(map(int, record["drafted"])),
        confidence=_floats(record["confidence"]),
        verified=int(record["verified"]),
        accepted=int(record["accepted"]),
        next=int(record["next"]),
        pieces=tokens,
        rejected=_pieces(record["rejected"]),
        context_tokens=int(record["context_tokens"]),
        draft_seconds=float(record["draft_seconds"]),
        verify_seconds=float(record["verify_seconds"]),
        seconds=float(record["seconds"]),
        is_parked=bool(record.get("parked", False)),
        draft_cost=float(record.get("draft_cost", 0.0)),
        draft_tokens=float(record.get("draft_tokens", 0.0)),
        expert_reads=int(record.get("expert_reads", 0)),
        expert_far=int(record.get("expert_far", 0)),
        expert_bytes=int(record.get("expert_bytes", 0)),
        accept_seconds=float(record.get("accept_seconds", 0.0)),
        draft_probs=_floats(record.get("draft_probs")),
        target_probs=_floats(record.get("target_probs")),
    )


def _floats(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))


def _read_finished(record: dict[str, Any], request_id: int) -> Finished:
    if record["reason"] not in get_args(FinishReason):
        raise ValueError(f"an answer ends by {record['reason']!r}, which is not known")
    stats = record["stats"]  # of an older version, which lacked some
    return Finished(
        request_id,
        record["reason"],
        tuple(map(int, record["token_ids"])),
        str(record["text"]),
        DecodeStats(*(_number(stats.get(each.name, 0)) for each in fields(DecodeStats))),
        tail=str(record["tail"]),
        thinking=str(record["thinking"]),
        ends_thinking=bool(record["ends_thinking"]),
    )


def _number(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def _check_version(record: dict[str, Any]) -> None:
    if record["version"] != VERSION:
        raise ValueError(f"version {record['version']} of the rounds is not known")


def _pieces(tokens: Any) -> tuple[Piece, ...]:
    return tuple(map(_piece, tokens))


def _piece(token: dict[str, Any]) -> Piece:
    confidence = token["confidence"]
    return Piece(
        token_id=int(token["id"]),
        text=str(token["text"]),
        is_draft=bool(token["is_draft"]),
        confidence=None if confidence is None else float(confidence),
        is_thinking=bool(token["is_thinking"]),
    )
