"""Figures of an answer under way, in the same terms as its final `DecodeStats`."""

from dataclasses import replace

from dspark.chat.backend import ChatEvent
from dspark.events import DecodeStats, Finished, Round, TextDelta

NOTHING_YET = DecodeStats(
    prompt_tokens=0,
    new_tokens=0,
    rounds=0,
    drafted=0,
    verified=0,
    accepted=0,
    prefill_seconds=0.0,
    decode_seconds=0.0,
)


def add_event(stats: DecodeStats, event: ChatEvent) -> DecodeStats:
    if isinstance(event, Finished):
        return event.stats
    stats = replace(stats, new_tokens=stats.new_tokens + len(event.pieces))
    if isinstance(event, TextDelta):
        return replace(stats, decode_seconds=stats.decode_seconds + event.seconds)
    if not isinstance(event, Round):
        return stats
    return replace(
        stats,
        rounds=stats.rounds + 1,
        drafted=stats.drafted + len(event.draft),
        verified=stats.verified + event.verified,
        accepted=stats.accepted + event.accepted,
        decode_seconds=stats.decode_seconds + event.seconds,
        parked=stats.parked + event.is_parked,
        draft_cost=event.draft_cost if event.is_parked else stats.draft_cost,
        draft_tokens=event.draft_tokens if event.is_parked else stats.draft_tokens,
    )
