"""A round for the eye: what became of each draft and why, and where the time went."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dspark.chat.control_characters import visible
from dspark.events import Piece, Round

End = Literal["all accepted", "rejected", "schedule", "no drafts"]
Outcome = Literal["accepted", "rejected", "behind a rejected one", "not verified"]


@dataclass(frozen=True, slots=True)
class DraftRow:
    """`text` is None for a draft that was not verified, of which only the id is told. `survival`:
    the product of the confidences up to here; None without a confidence head. Probabilities are
    None where they were not asked for, the target's also where it did not check the draft."""

    position: int
    token_id: int
    text: str | None
    confidence: float | None
    survival: float | None
    outcome: Outcome
    draft_prob: float | None = None
    target_prob: float | None = None


def end_of(event: Round) -> End:
    """What ended the round: a refusal, the schedule that let no more be verified, or the block."""
    if not event.draft:
        return "no drafts"
    if event.accepted < event.verified:
        return "rejected"
    return "all accepted" if event.verified == len(event.draft) else "schedule"


def draft_rows(event: Round) -> list[DraftRow]:
    texts = _texts(event)
    rows, survival = [], 1.0
    for at, token_id in enumerate(event.draft):
        confidence = None if event.confidence is None else event.confidence[at]
        survival *= confidence or 0.0
        rows.append(
            DraftRow(
                position=at + 1,
                token_id=token_id,
                text=texts.get(at),
                confidence=confidence,
                survival=None if confidence is None else survival,
                outcome=_outcome(event, at),
                draft_prob=_at(event.draft_probs, at),
                target_prob=_at(event.target_probs, at),
            )
        )
    return rows


def own_token(event: Round) -> str:
    """The text of the token that the target added; "" where the answer had ended before it."""
    last = event.pieces[-1:]
    return _shown(last[0]) if last and not last[0].is_draft else ""


def _at(values: Sequence[float] | None, at: int) -> float | None:
    return values[at] if values is not None and at < len(values) else None


def tells_probs(event: Round) -> bool:
    return event.draft_probs is not None or event.target_probs is not None


def host_seconds(event: Round) -> float:
    """What draft, verification and acceptance did not take: committing, telling."""
    parts = event.draft_seconds + event.verify_seconds + event.accept_seconds
    return max(0.0, event.seconds - parts)


def rounds_of(events: Iterable[object]) -> list[Round]:
    return [event for event in events if isinstance(event, Round)]


def _outcome(event: Round, at: int) -> Outcome:
    if at < event.accepted:
        return "accepted"
    if at >= event.verified:
        return "not verified"
    return "rejected" if at == event.accepted else "behind a rejected one"


def _texts(event: Round) -> dict[int, str]:
    kept: Sequence[Piece] = [piece for piece in event.pieces if piece.is_draft]
    refused = enumerate(event.rejected, start=event.accepted)
    return {
        **{at: _shown(piece) for at, piece in enumerate(kept)},
        **{at: _shown(piece) for at, piece in refused},
    }


def _shown(piece: Piece) -> str:
    """With its spaces and line breaks visible."""
    return visible(piece.text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·"))
