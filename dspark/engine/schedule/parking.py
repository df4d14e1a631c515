"""Parking: drafting stops where it loses against plain decoding, and is tried again later.

Each number of requests has a ledger in units of plain rounds. A round with drafts is worth the
tokens that a request gained in it, and costs its time over that of a plain round. Drafting is
parked once the ledger is in debt by more than chance explains, for as long as makes that loss
PROBE_COST of the time, and for longer after each attempt that fails. A number of requests that is
new begins with an attempt if the table of pass times and the acceptance so far say that drafts
pay; if not, parked, for as long as the attempt would cost. So what attempts lose is bounded.
Whether to draft depends on finished rounds only, so that it changes no token and no distribution.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import fmean, median
from typing import Any

from dspark.atomic import replacing
from dspark.engine.schedule.acceptance import Acceptance
from dspark.engine.schedule.expected_gain import Gain

ALLOWANCE = 8.0  # plain rounds that an attempt of one request may lose; chance averages over more
CREDIT = 2.0  # times the allowance: earlier gains that count; more would delay parking
PROBE_COST = 0.01  # share of the time that attempts may lose
MOST_DOUBLINGS = 3  # of the interval between attempts
MARGIN = 1.05  # expected gain that is tried at once
SURE = 1.3  # expected gain that is tried without plain rounds to compare with
ATTEMPT = 24  # requests' rounds that tell whether an attempt succeeds
COMPARED = 8  # plain rounds in a row that a comparison needs: behind drafts the first are slow
SETTLED = 3  # of them, the last, which count
KNOWN = 8  # rounds with drafts whose mean is believed
REFRESH_COST = 0.005  # share of the time that measuring plain rounds may lose while drafting
REFRESH_ROUNDS = (32, 512)  # between two such measurements
PACE = 1.25  # ratio of rounds' times, or its inverse, at which plain rounds are measured again
OUTLIER = 2.0  # times the usual: another program had the processor
LEARNING_RATE = 1 / 64  # of the mean number of tokens

Seconds = Callable[[int], float]
ExpectedGain = Callable[[int, Sequence[float]], Gain]
# of a ledger, kept for the next process
STORED: dict[str, Callable[[Any], Any]] = {
    "parked_for": int,
    "interval": int,
    "failures": int,
    "balance": float,
    "cost": float,
    "tokens": float,
    "is_tried": bool,
}


@dataclass(slots=True)
class Ledger:
    """Of one number of requests. `parked_for` rounds are left until the next attempt, and
    `interval` are as many as the last one's loss is worth."""

    requests: int
    parked_for: int = 0
    interval: int = 0
    failures: int = 0
    balance: float = 0.0
    cost: float = 0.0  # of a round with drafts, in plain rounds; 0: not known yet
    tokens: float = 0.0  # mean of a round with drafts
    is_tried: bool = False
    catching_up: float = 0.0  # plain rounds that this attempt spent on what was parked
    plain: deque[float] = field(default_factory=lambda: deque(maxlen=SETTLED))
    drafted: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    since_plain: int = 0  # rounds with drafts since the last plain one
    pace: float = 0.0  # their seconds at first
    refreshes: int = 0
    plain_due: int = COMPARED  # plain rounds to run before the next one with drafts

    @property
    def is_parked(self) -> bool:
        return self.parked_for > 0

    @property
    def allowance(self) -> float:
        return ALLOWANCE / sqrt(self.requests)

    def add_plain(self, seconds: float) -> None:
        if self.since_plain:  # those of an earlier minute
            self.plain.clear()
        self.plain.append(seconds)
        self.since_plain, self.pace = 0, 0.0
        self.plain_due = max(self.plain_due - 1, 0)
        if self.parked_for:
            self.parked_for -= 1
            if not self.parked_for:
                self._attempt()

    def add_drafted(self, seconds: float, tokens: float, caught_up: float) -> None:
        """`tokens` per request; `caught_up` are seconds besides, of what was committed without
        drafts."""
        self.since_plain += 1
        self.tokens = _mean(self.tokens if self.is_tried else 0.0, tokens)
        self.is_tried = True
        if not self.plain:
            return
        self.drafted.append(seconds)
        usual = median(self.plain)
        self.catching_up += caught_up / usual
        gain = tokens - self._cost_of(usual)
        self.balance = min(self.balance + gain, CREDIT * self.allowance)
        if self.balance >= self.allowance:
            self.failures = 0
        if self.balance < -self.allowance:
            self._park()
        elif self.since_plain >= self._refresh_after():
            self.plain_due = COMPARED
            self.refreshes += 1

    def expect(self, gain: Gain) -> None:
        """Park without an attempt, where it would probably fail, for as long as it would cost."""
        self.cost, self.tokens = gain.cost, gain.gain * gain.cost
        if gain.gain >= MARGIN:
            self.parked_for = 0
            self.trust_table()
            return
        rounds = max(ATTEMPT // self.requests, 2)
        loss = min(rounds * gain.cost * (1 - gain.gain), self.allowance + gain.cost)
        self.interval = int(max(loss, self.allowance) / PROBE_COST)
        self.parked_for = min(self.parked_for or self.interval, self.interval)

    def trust_table(self) -> None:
        """For a plain round's time, where drafts pay by far."""
        if not self.plain and self.tokens > SURE * self.cost > 0:
            self.plain.append(1.0)
            self.plain_due = 0

    def try_sooner(self) -> None:
        """A new text may suit the drafter better."""
        self.parked_for = min(self.parked_for, self.interval)

    def _cost_of(self, plain: float) -> float:
        """Of a round in plain rounds; of many the mean, since blocks differ in length, and of few
        the least, since other programs hold up several in a row."""
        is_known = len(self.drafted) >= KNOWN
        cost = (_typical(self.drafted) if is_known else min(self.drafted)) / plain
        if len(self.drafted) == 1 and self.cost:
            return min(cost, OUTLIER * self.cost)
        self.cost = cost
        return cost

    def _has_another_pace(self) -> bool:
        """Whether rounds became faster or slower, so that plain ones probably did too."""
        if len(self.drafted) < KNOWN:
            return False
        now = _typical(self.drafted)
        self.pace = self.pace or now
        return not 1 / PACE < now / self.pace < PACE

    def _attempt(self) -> None:
        self.balance, self.catching_up = 0.0, 0.0
        self.drafted.clear()

    def _park(self) -> None:
        self.interval = int((self.catching_up - self.balance) / PROBE_COST)
        self.parked_for = self.interval << self.failures
        self.failures = min(self.failures + 1, MOST_DOUBLINGS)
        self.balance = 0.0

    def _refresh_after(self) -> int:
        """Rounds until plain rounds are measured again; at a loss, before it is believed."""
        least, most = REFRESH_ROUNDS
        if self.balance < 0 or not self.cost:
            return least // 2
        if self._has_another_pace():
            return least
        gain = self.tokens / self.cost - 1
        # the first plain rounds of a process are slow, so they are soon measured again
        early = 2 * least << min(self.refreshes, 5)
        return int(min(max(COMPARED * gain / REFRESH_COST, least), most, early))


class Parking:
    """`plain_seconds` is what a table says of a plain round by the number of requests, up to a
    factor, `expected_gain` what it says of drafting with some survival (None: nothing)."""

    def __init__(
        self,
        path: Path | None = None,
        plain_seconds: Seconds = lambda num_requests: 1.0,
        expected_gain: ExpectedGain | None = None,
        block_size: int = 1,
    ) -> None:
        self._path, self._plain_seconds, self._expected_gain = path, plain_seconds, expected_gain
        self._ledgers: dict[int, Ledger] = {}
        self._acceptance = Acceptance(block_size)
        self._is_changed = False
        if path is not None:
            self._load(path)

    def wants_drafts(self, num_requests: int) -> bool:
        ledger = self._ledger(num_requests)
        return not ledger.is_parked and not ledger.plain_due

    def is_parked(self, num_requests: int) -> bool:
        return self._ledger(num_requests).is_parked

    def figures(self, num_requests: int) -> tuple[float, float]:
        """Of a round with drafts: its time in plain rounds, and its tokens; as measured, or else
        as expected."""
        ledger = self._ledger(num_requests)
        return ledger.cost, ledger.tokens

    def record(
        self,
        seconds: float,
        blocks: Sequence[tuple[int, int]],
        *,
        has_drafts: bool,
        caught_up: float = 0.0,
    ) -> None:
        """A finished round: drafts verified and accepted of each request. `caught_up` seconds, not
        among the others, went into what was committed without drafts."""
        num_requests = len(blocks)
        ledger, unit = self._ledger(num_requests), self._plain_seconds(num_requests)
        self._is_changed = True
        if not has_drafts:
            ledger.add_plain(seconds / unit)
            return
        for verified, accepted in blocks:
            self._acceptance.record(verified, accepted)
        tokens = 1 + sum(accepted for _, accepted in blocks) / num_requests
        ledger.add_drafted(seconds / unit, tokens, caught_up / unit)

    def begin_text(self) -> None:
        """A new request: drafting is tried again as soon as its cost allows."""
        for ledger in self._ledgers.values():
            ledger.try_sooner()
            if ledger.is_parked and not ledger.is_tried:
                self._judge(ledger)

    def save(self) -> None:
        """So that a short answer of the next process does not try again what has failed."""
        if self._path is None or not self._is_changed:
            return
        self._is_changed = False
        known = {
            each.requests: {name: getattr(each, name) for name in STORED}
            for each in self._ledgers.values()
        }
        seen = {"tried": self._acceptance.tried, "kept": self._acceptance.kept}
        own = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path, own) as partial:
                partial.write_text(json.dumps({"acceptance": seen, "ledgers": known}))
        except OSError:
            return

    def _load(self, path: Path) -> None:
        """Nothing, if no usable file is there."""
        try:
            stored = json.loads(path.read_text())
            ledgers = {
                int(count): Ledger(
                    int(count), **{name: kind(own[name]) for name, kind in STORED.items()}
                )
                for count, own in stored["ledgers"].items()
            }
            self._acceptance.load(**stored["acceptance"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return
        self._ledgers = ledgers
        for ledger in ledgers.values():
            ledger.trust_table()

    def _ledger(self, num_requests: int) -> Ledger:
        """Shared by numbers up to a factor of two."""
        key = 1 << (num_requests - 1).bit_length()
        if key not in self._ledgers:
            self._ledgers[key] = Ledger(key)
            self._judge(self._ledgers[key])
        return self._ledgers[key]

    def _judge(self, ledger: Ledger) -> None:
        if self._expected_gain is not None:
            ledger.expect(self._expected_gain(ledger.requests, self._acceptance.survival))


def _mean(so_far: float, tokens: float) -> float:
    return so_far + LEARNING_RATE * (tokens - so_far) if so_far else tokens


def _typical(seconds: deque[float]) -> float:
    """The mean without rounds that other programs held up: blocks differ in length, so that their
    median would not be the cost."""
    limit = OUTLIER * median(seconds)
    return fmean(each for each in seconds if each <= limit)
