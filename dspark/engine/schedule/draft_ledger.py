"""The ledger of drafting with one number of requests, in units of plain rounds.

A round with drafts is worth the tokens that a request gained in it, and costs its time over that of
a plain round. Parked, nothing is drafted until an attempt is due. An attempt ends once it is in
debt by more than chance explains, and at last after ATTEMPT rounds unless it is ahead; what it lost
is PROBE_COST of the time until the next one. What attempts and whole texts brought so far says
whether a new text is worth an attempt of its own.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean, median
from typing import Any

from dspark.engine.schedule.expected_gain import Gain

ALLOWANCE = 8.0  # plain rounds of debt of one request; chance averages over more
CREDIT = 2.0  # times the allowance: earlier gains that count; more would delay parking
PROBE_COST = 0.01  # share of the time that attempts may lose
MOST_DOUBLINGS = 3  # of the interval between attempts
MARGIN = 1.05  # expected gain that is tried at once
SURE = 1.3  # expected gain that is tried without plain rounds to compare with
ATTEMPT = 24  # requests' rounds that tell whether an attempt succeeds
CERTAIN = 2.5  # standard errors below nothing at which a loss is no chance
LEAST_ROUNDS = 4  # that can tell
FIRST_SPREAD = 0.7  # of one request's tokens in a round, before some were seen
COMPARED = 8  # plain rounds in a row that a comparison needs: behind drafts the first are slow
SETTLED = 3  # of them, the last, which count
KNOWN = 8  # rounds with drafts whose mean is believed
REFRESH_COST = 0.005  # share of the time that measuring plain rounds may lose while drafting
REFRESH_ROUNDS = (32, 512)  # between two such measurements
PACE = 1.25  # ratio of rounds' times, or its inverse, at which plain rounds are measured again
OUTLIER = 2.0  # times the usual: another program had the processor
LEARNING_RATE = 1 / 64  # of the mean number of tokens
TEXT_RATE = 1 / 4  # of what a text brings

# kept for the next process
STORED: dict[str, Callable[[Any], Any]] = {
    "parked_for": int,
    "interval": int,
    "failures": int,
    "balance": float,
    "cost": float,
    "tokens": float,
    "worth": float,
    "is_tried": bool,
}


@dataclass(slots=True)
class Attempt:
    """Rounds with drafts since drafting began or a text did: what they gained, the squares of that,
    and what was spent on committed tokens that had waited."""

    rounds: int = 0
    gained: float = 0.0
    squares: float = 0.0
    catching_up: float = 0.0

    @property
    def net(self) -> float:
        return self.gained - self.catching_up

    def add(self, gain: float) -> None:
        self.rounds += 1
        self.gained += gain
        self.squares += gain * gain

    def has_lost(self, first_spread: float) -> bool:
        """Whether chance does not explain the loss; one round may have met another program."""
        if self.rounds < LEAST_ROUNDS:
            return False
        mean = self.gained / self.rounds
        known = max(self.squares - self.rounds * mean * mean, 0.0)
        variance = (KNOWN * first_spread**2 + known) / (KNOWN + self.rounds)
        return self.gained < -CERTAIN * sqrt(variance * self.rounds)


@dataclass(slots=True)
class Ledger:
    """`parked_for` rounds are left until the next attempt, and `interval` are as many as the last
    one's loss is worth; `worth` is what a text brought lately if drafts were tried in it."""

    requests: int
    parked_for: int = 0
    interval: int = 0
    failures: int = 0
    balance: float = 0.0
    cost: float = 0.0  # of a round with drafts, in plain rounds; 0: not known yet
    tokens: float = 0.0  # mean of a round with drafts
    worth: float = 0.0
    is_tried: bool = False
    is_proven: bool = False  # this attempt has succeeded
    attempt: Attempt = field(default_factory=Attempt)
    plain: deque[float] = field(default_factory=lambda: deque(maxlen=SETTLED))
    drafted: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    since_plain: int = 0  # rounds with drafts since the last plain one
    pace: float = 0.0  # their seconds at first
    refreshes: int = 0
    plain_due: int = COMPARED  # plain rounds to run before the next one with drafts
    usual: float = 0.0  # seconds of a plain round, when drafting was parked last
    settling: int = 0  # plain rounds left that may still be slow because of the drafts before

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
            self._settle(seconds)
            if not self.parked_for:
                self._begin()

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
        self.attempt.catching_up += caught_up / usual
        gain = tokens - self._cost_of(usual)
        self.attempt.add(gain)
        self.balance = min(self.balance + gain, CREDIT * self.allowance)
        if self.balance >= self.allowance:
            self.failures = 0
        if self._is_lost():
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

    def begin_text(self) -> None:
        """It may suit the drafter better than the last one did."""
        if not self.is_parked:  # what earlier texts gained says little of this one
            self._learn_worth()
            self.attempt, self.is_proven = Attempt(), False
            self.balance = min(self.balance, 0.0)
        elif self.worth > 0 and self.plain:
            self._begin()
        else:
            self.parked_for = min(self.parked_for, self.interval)

    def _is_lost(self) -> bool:
        if self.balance < -self.allowance:
            return True
        if self.is_proven:
            return False
        if self.attempt.rounds >= max(ATTEMPT // self.requests, 2):
            self.is_proven = self.balance >= 0
            return not self.is_proven
        return self.attempt.has_lost(FIRST_SPREAD / sqrt(self.requests))

    def _learn_worth(self) -> None:
        if self.attempt.rounds:
            most = CREDIT * self.allowance
            net = max(min(self.attempt.net, most), -most)
            self.worth += TEXT_RATE * (net - self.worth)

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

    def _begin(self) -> None:
        """An attempt."""
        self.parked_for, self.balance, self.is_proven = 0, 0.0, False
        self.attempt = Attempt()
        self.drafted.clear()

    def _park(self) -> None:
        self._learn_worth()
        loss = max(self.attempt.catching_up - self.balance, 1.0)
        self.usual, self.settling = median(self.plain), COMPARED
        self.interval = int(loss / PROBE_COST)
        self.parked_for = self.interval << self.failures
        self.failures = min(self.failures + 1, MOST_DOUBLINGS)
        self.balance, self.attempt = 0.0, Attempt()

    def _settle(self, seconds: float) -> None:
        """What plain rounds right behind drafts take longer is lost, too."""
        if self.settling:
            self.settling -= 1
            rounds = int((min(seconds / self.usual, OUTLIER) - 1) / PROBE_COST)
            self.interval += rounds
            self.parked_for = max(self.parked_for + rounds, 1)

    def _refresh_after(self) -> int:
        """Rounds until plain rounds are measured again; at a loss, before it is believed."""
        least, most = REFRESH_ROUNDS
        if self.balance < -self.allowance / 2 or not self.cost:
            return least // 2
        if self._has_another_pace():
            return least
        gain = self.tokens / self.cost - 1
        # the first plain rounds of a process are slow, so they are soon measured again
        early = 2 * least << min(self.refreshes, 5)
        return int(min(max(COMPARED * gain / REFRESH_COST, least), most, early))


def _mean(so_far: float, tokens: float) -> float:
    return so_far + LEARNING_RATE * (tokens - so_far) if so_far else tokens


def _typical(seconds: deque[float]) -> float:
    """The mean without rounds that other programs held up: blocks differ in length, so that their
    median would not be the cost."""
    limit = OUTLIER * median(seconds)
    return fmean(each for each in seconds if each <= limit)
