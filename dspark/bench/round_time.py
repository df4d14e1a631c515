"""Where the time of a round goes."""

from collections.abc import Sequence
from dataclasses import dataclass

from dspark.bench.summary import Run


@dataclass(frozen=True, slots=True)
class RoundTime:
    """Mean seconds of a round. `verify` includes acceptance, `commit` is the rest of the round,
    `host` what passes between two rounds: text, stops, bookkeeping."""

    rounds: int
    draft: float
    verify: float
    commit: float
    host: float

    @property
    def total(self) -> float:
        return self.draft + self.verify + self.commit + self.host


def round_time(runs: Sequence[Run]) -> RoundTime | None:
    """None without rounds."""
    rounds = [each for run in runs for each in run.rounds]
    if not rounds:
        return None
    count = len(rounds)
    draft = sum(each.draft_seconds for each in rounds)
    verify = sum(each.verify_seconds + each.accept_seconds for each in rounds)
    whole = sum(each.seconds for each in rounds)
    decode = sum(run.finished.stats.decode_seconds for run in runs)
    return RoundTime(
        rounds=count,
        draft=draft / count,
        verify=verify / count,
        commit=max(whole - draft - verify, 0.0) / count,
        host=max(decode - whole, 0.0) / count,
    )


def accepted_lengths(runs: Sequence[Run]) -> tuple[int, ...]:
    """Rounds with drafts by the number of accepted ones, from 0."""
    accepted = [each.accepted for run in runs for each in run.rounds if not each.is_parked]
    return tuple(accepted.count(n) for n in range(max(accepted, default=-1) + 1))
