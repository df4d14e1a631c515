"""Parking: drafting stops where it loses against plain decoding, and is tried again later.

Each number of requests has a ledger in units of plain rounds. A round with drafts is worth the
tokens that a request gained in it, and costs its time over that of a plain round. Drafting is
parked once the ledger is ALLOWANCE in debt, for as long as makes that loss PROBE_COST of the time,
and for longer after each attempt that fails. So what attempts lose is bounded; the
time in which tables are measured is not counted. Whether to
draft depends on finished rounds only, so that it changes no token and no distribution.
"""

import json
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

from dspark.atomic import replacing

ALLOWANCE = 8.0  # plain rounds that an attempt may lose
CREDIT = 16.0  # plain rounds of earlier gains that count: more would delay parking
PROBE_COST = 0.02  # share of the time that attempts may lose
MOST_DOUBLINGS = 3  # of the interval between attempts
COMPARED = 3  # plain rounds in a row that a comparison needs
REFRESH_COST = 0.005  # share of the time that measuring plain rounds may lose while drafting
REFRESH_ROUNDS = (32, 512)  # between two such measurements
OUTLIER = 2.0  # times the median: another program had the processor
KNOWN_ROUNDS = 64  # with drafts, after which their mean number of tokens is believed
LEARNING_RATE = 1 / 64  # of the mean number of tokens

Seconds = Callable[[int], float]


@dataclass(slots=True)
class Ledger:
    """Of one number of requests. `parked_for` rounds are left until the next attempt."""

    parked_for: int = 0
    failures: int = 0
    balance: float = 0.0
    cost: float = 0.0  # of a round with drafts, in plain rounds; 0: not known yet
    tokens: float = 0.0  # mean of a round with drafts
    plain: deque[float] = field(default_factory=lambda: deque(maxlen=2 * COMPARED))
    drafted: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    is_warm: bool = False  # whether this attempt has had its first round
    since_plain: int = 0  # rounds with drafts since the last plain one
    refreshes: int = 0
    plain_due: int = COMPARED  # plain rounds to run before the next one with drafts

    @property
    def is_parked(self) -> bool:
        return self.parked_for > 0

    def add_plain(self, seconds: float) -> None:
        self.plain.append(seconds)
        self.since_plain = 0
        self.plain_due = max(self.plain_due - 1, 0)
        if self.parked_for:
            self.parked_for -= 1
            if not self.parked_for:
                self._attempt()

    def add_drafted(self, seconds: float, tokens: float) -> None:
        """`tokens` per request."""
        self.since_plain += 1
        self.tokens = _mean(self.tokens, tokens)
        if self.is_warm:  # the first round also catches up on what was committed without drafts
            self.drafted.append(seconds)
        self.is_warm = True
        if len(self.drafted) >= COMPARED and self.plain:
            self.cost = _typical(self.drafted) / median(self.plain)
        if not self.cost:
            return
        self.balance = min(self.balance + tokens - self.cost, CREDIT)
        if self.balance >= ALLOWANCE:
            self.failures = 0
        if self.balance < -ALLOWANCE:
            self._park()
        elif self.since_plain >= self._refresh_after():
            self.plain_due = COMPARED
            self.refreshes += 1

    def park_at_first(self) -> None:
        """Without an attempt, where it would probably fail."""
        self.parked_for = int(ALLOWANCE / PROBE_COST) // 2

    def try_sooner(self) -> None:
        """A new text may suit the drafter better."""
        self.parked_for = min(self.parked_for, int(ALLOWANCE / PROBE_COST))

    def _attempt(self) -> None:
        self.balance, self.is_warm = 0.0, False
        self.drafted.clear()

    def _park(self) -> None:
        self.parked_for = int(-self.balance / PROBE_COST) << self.failures
        self.failures = min(self.failures + 1, MOST_DOUBLINGS)
        self.balance = 0.0

    def _refresh_after(self) -> int:
        """Rounds until plain rounds are measured again; at a loss, before it is believed."""
        least, most = REFRESH_ROUNDS
        if self.balance < 0:
            return least // 2
        gain = self.tokens / self.cost - 1
        # the first plain rounds of a process are slow, so they are soon measured again
        early = least // 2 << min(self.refreshes, 5)
        return int(min(max(COMPARED * gain / REFRESH_COST, least), most, early))


class Parking:
    """`plain_seconds` and `draft_cost` are what a table says of a number of requests: seconds of a
    plain round, up to a factor, and the cost of drafting in plain rounds (None: unknown)."""

    def __init__(
        self,
        path: Path | None = None,
        plain_seconds: Seconds = lambda num_requests: 1.0,
        draft_cost: Seconds | None = None,
    ) -> None:
        self._path, self._plain_seconds, self._draft_cost = path, plain_seconds, draft_cost
        self._ledgers: dict[int, Ledger] = {}
        self._tokens, self._rounds = 0.0, 0  # mean of the rounds with drafts, and their number
        self._is_changed = False
        if path is not None:
            self._load(path)

    def wants_drafts(self, num_requests: int) -> bool:
        ledger = self._ledger(num_requests)
        return not ledger.is_parked and not ledger.plain_due

    def is_parked(self, num_requests: int) -> bool:
        return self._ledger(num_requests).is_parked

    def record(self, num_requests: int, seconds: float, tokens: int, *, has_drafts: bool) -> None:
        """A finished round of that many requests, which committed `tokens` in all."""
        ledger = self._ledger(num_requests)
        normalised = seconds / self._plain_seconds(num_requests)
        self._is_changed = True
        if not has_drafts:
            ledger.add_plain(normalised)
            return
        mean = tokens / num_requests
        self._tokens, self._rounds = _mean(self._tokens, mean), self._rounds + 1
        ledger.add_drafted(normalised, mean)

    def begin_text(self) -> None:
        """A new request: drafting is tried again as soon as its cost allows."""
        for ledger in self._ledgers.values():
            ledger.try_sooner()

    def save(self) -> None:
        """So that a short answer of the next process does not try again what has failed."""
        if self._path is None or not self._is_changed:
            return
        self._is_changed = False
        known = {
            count: [ledger.parked_for, ledger.failures, ledger.balance, ledger.cost]
            for count, ledger in self._ledgers.items()
        }
        own = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path, own) as partial:
                partial.write_text(
                    json.dumps({"tokens": self._tokens, "rounds": self._rounds, "ledgers": known})
                )
        except OSError:
            return

    def _load(self, path: Path) -> None:
        """Nothing, if no usable file is there."""
        try:
            stored = json.loads(path.read_text())
            ledgers = {
                int(count): Ledger(int(parked), int(failures), float(balance), float(cost))
                for count, (parked, failures, balance, cost) in stored["ledgers"].items()
            }
            tokens, rounds = float(stored["tokens"]), int(stored["rounds"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return
        self._ledgers, self._tokens, self._rounds = ledgers, tokens, rounds

    def _ledger(self, num_requests: int) -> Ledger:
        """Shared by numbers up to a factor of two."""
        key = 1 << (num_requests - 1).bit_length()
        if key not in self._ledgers:
            self._ledgers[key] = self._new_ledger(num_requests)
        return self._ledgers[key]

    def _new_ledger(self, num_requests: int) -> Ledger:
        ledger = Ledger()
        cost = 0.0 if self._draft_cost is None else self._draft_cost(num_requests)
        if self._rounds >= KNOWN_ROUNDS and self._tokens < cost:
            ledger.park_at_first()
        return ledger


def _mean(so_far: float, tokens: float) -> float:
    return so_far + LEARNING_RATE * (tokens - so_far) if so_far else tokens


def _typical(seconds: deque[float]) -> float:
    """The mean without rounds that other programs held up: blocks differ in length, so that their
    median would not be the cost."""
    limit = OUTLIER * median(seconds)
    return fmean(each for each in seconds if each <= limit)
