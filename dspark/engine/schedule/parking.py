"""Parking: drafting stops where it loses against plain decoding, and is tried again later.

Each number of requests has a ledger. A number of requests that is new begins with an attempt if the
table of pass times and the acceptance so far say that drafts pay; if not, parked, for as long as
the attempt would cost. So what attempts lose is bounded. Whether to draft depends on finished
rounds only, so that it changes no token and no distribution.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from dspark.atomic import replacing
from dspark.engine.schedule.acceptance import Acceptance
from dspark.engine.schedule.draft_ledger import STORED, Ledger
from dspark.engine.schedule.expected_gain import Gain

Seconds = Callable[[int], float]
ExpectedGain = Callable[[int, Sequence[float]], Gain]


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

    @property
    def acceptance(self) -> Acceptance:
        """Of finished rounds."""
        return self._acceptance

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
        """A new request: drafting is tried again at once where that has paid, or else as soon as
        its cost allows."""
        for ledger in self._ledgers.values():
            ledger.begin_text()
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
                    int(count), **{n: kind(own[n]) for n, kind in STORED.items() if n in own}
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
