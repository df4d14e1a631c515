"""Rounds in the open format that docs/rounds.md describes: what was drafted, kept and refused."""

from typing import Any

from dspark.events import Piece, PrefillProgress, Round

VERSION = 1


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
    }


def _token(piece: Piece) -> dict[str, Any]:
    return {
        "id": piece.token_id,
        "text": piece.text,
        "is_draft": piece.is_draft,
        "confidence": piece.confidence,
        "is_thinking": piece.is_thinking,
    }


def read_round(record: dict[str, Any], request_id: int) -> PrefillProgress | Round:
    """The event that a record states. Raises KeyError, TypeError or ValueError for another
    format or a newer version."""
    if record["version"] != VERSION:
        raise ValueError(f"version {record['version']} of the rounds is not known")
    tokens = tuple(_piece(token) for token in record["tokens"])
    if record["type"] == "prompt":
        return PrefillProgress(request_id, int(record["done"]), int(record["total"]), tokens)
    confidence = record["confidence"]
    return Round(
        request_id=request_id,
        index=int(record["index"]),
        anchor=int(record["anchor"]),
        draft=tuple(map(int, record["drafted"])),
        confidence=None if confidence is None else tuple(map(float, confidence)),
        verified=int(record["verified"]),
        accepted=int(record["accepted"]),
        next=int(record["next"]),
        pieces=tokens,
        rejected=tuple(_piece(token) for token in record["rejected"]),
        context_tokens=int(record["context_tokens"]),
        draft_seconds=float(record["draft_seconds"]),
        verify_seconds=float(record["verify_seconds"]),
        seconds=float(record["seconds"]),
    )


def _piece(token: dict[str, Any]) -> Piece:
    confidence = token["confidence"]
    return Piece(
        token_id=int(token["id"]),
        text=str(token["text"]),
        is_draft=bool(token["is_draft"]),
        confidence=None if confidence is None else float(confidence),
        is_thinking=bool(token["is_thinking"]),
    )
