"""The event that tells of one request's round, with the texts of its drafts."""

from collections.abc import Sequence

from dspark.engine.request import ActiveRequest
from dspark.engine.rounds.round_runner import Outcome
from dspark.events import Piece, Round
from dspark.text.spans import Span


def round_event(outcome: Outcome) -> Round:
    """Gives the request the tokens of its round."""
    active, ids, num_accepted = outcome.active, outcome.draft, outcome.accepted
    confidence = outcome.confidence or (None,) * len(ids)
    refused = ids[num_accepted : outcome.verified]
    rejected = _preview(active, ids[:num_accepted], refused, confidence[num_accepted:])
    anchor = active.anchor
    pieces = active.emit(
        [
            *((ids[k], True, confidence[k]) for k in range(num_accepted)),
            (outcome.next_id, False, None),
        ],
        outcome.logprobs,
    )
    active.anchor = outcome.next_id
    active.count_round(len(ids), outcome.verified, num_accepted, is_parked=outcome.is_parked)
    if outcome.is_parked:
        active.draft_figures = outcome.draft_cost, outcome.draft_tokens
    return Round(
        request_id=active.request_id,
        index=active.rounds - 1,
        anchor=anchor,
        draft=ids,
        confidence=outcome.confidence,
        verified=outcome.verified,
        accepted=num_accepted,
        next=outcome.next_id,
        pieces=pieces,
        rejected=rejected,
        context_tokens=len(active.request.prompt_ids) + len(active.token_ids),
        draft_seconds=outcome.draft_seconds,
        verify_seconds=outcome.verify_seconds,
        seconds=outcome.seconds,
        is_parked=outcome.is_parked,
        draft_cost=outcome.draft_cost,
        draft_tokens=outcome.draft_tokens,
        expert_reads=outcome.expert_reads,
        expert_far=outcome.expert_far,
        expert_bytes=outcome.expert_bytes,
        accept_seconds=outcome.accept_seconds,
        draft_probs=outcome.draft_probs,
        target_probs=outcome.target_probs,
    )


def _preview(
    active: ActiveRequest,
    accepted: Sequence[int],
    refused: Sequence[int],
    confidence: Sequence[float | None],
) -> tuple[Piece, ...]:
    """Text pieces of the rejected drafts."""
    spans = [Span("")] * len(refused)
    if active.stream is not None and refused:
        spans = active.stream.preview([*accepted, *refused])[len(accepted) :]
    return tuple(
        Piece(token_id, span.text, True, c, span.is_thinking)
        for token_id, span, c in zip(refused, spans, confidence, strict=False)
    )
