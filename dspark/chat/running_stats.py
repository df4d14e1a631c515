"""Running figures of one answer, in the same terms as its final `DecodeStats`."""

from dataclasses import replace

from dspark.events import DecodeStats, Round

NOTHING_YET = DecodeStats(
    prompt_tokens=0,
    new_tokens=1,
    rounds=0,
    drafted=0,
    verified=0,
    accepted=0,
    prefill_seconds=0.0,
    decode_seconds=0.0,
)


def add_round(stats: DecodeStats, round_: Round) -> DecodeStats:
    return replace(
        stats,
        new_tokens=stats.new_tokens + len(round_.pieces),
        rounds=stats.rounds + 1,
        drafted=stats.drafted + len(round_.draft),
        verified=stats.verified + round_.verified,
        accepted=stats.accepted + round_.accepted,
        decode_seconds=stats.decode_seconds + round_.seconds,
    )
