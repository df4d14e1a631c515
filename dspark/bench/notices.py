"""What a report calls out by itself, and the sentence on what to expect."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dspark.bench.noise import NOISY
from dspark.bench.round_time import RoundTime

if TYPE_CHECKING:
    from dspark.bench.floor import Floor
    from dspark.bench.peers.against import PeerFigures
    from dspark.bench.sections import Section

FAR_FROM_FLOOR = 3.0  # times the floor: the baseline leaves most of the memory's bandwidth unused
LEAST_ANSWERS = 4  # of an arm, for a forecast
PEER_AHEAD = 1.05  # times our own plain decoding
Kind = Literal["noisy", "one_trial", "not_lossless", "slow_baseline", "parked", "no_gain"]
UNTOLD: dict[Kind, str] = {  # what makes a forecast worthless
    "noisy": "it was noisy",
    "slow_baseline": "its baseline was slow, so that speed-ups flatter",
}


@dataclass(frozen=True, slots=True)
class Notice:
    kind: Kind
    text: str


def notices_of(section: "Section", floor: "Floor | None") -> tuple[Notice, ...]:
    found = [*_noise(section), *_identity(section)]
    if section.comparison.is_timed:
        found += _baseline(section.plain.round_time, floor)
        found += _parked(section)
    return tuple(found)


def _noise(section: "Section") -> list[Notice]:
    if not section.comparison.is_timed:
        return []
    spread = section.noise.spread
    if spread is None:
        return [Notice("one_trial", "one trial only: how noisy the machine was is not known")]
    if not section.noise.is_noisy:
        return []
    text = (
        f"noisy run: plain decoding of the same prompt varied by {spread:.0%} between trials "
        f"(a quiet machine stays below {NOISY:.0%}). Close other programs and measure again"
    )
    return [Notice("noisy", text)]


def _identity(section: "Section") -> list[Notice]:
    return [
        Notice(
            "not_lossless",
            f"{each.head.name} is not lossless: it changes the text of "
            f"{each.report.differing_prompts} of {each.report.prompts} prompts",
        )
        for each in section.comparison.heads
        if each.report.is_identical is False
    ]


def _baseline(plain: RoundTime | None, floor: "Floor | None") -> list[Notice]:
    if plain is None or floor is None or plain.total < FAR_FROM_FLOOR * floor.seconds:
        return []
    text = (
        f"slow baseline: a step of plain decoding takes {plain.total / floor.seconds:.1f} times "
        f"what reading the weights takes ({floor.seconds * 1e3:.1f} ms), so speed-ups flatter"
    )
    return [Notice("slow_baseline", text)]


def _parked(section: "Section") -> list[Notice]:
    return [
        Notice(
            "parked",
            f"{each.head.name}: drafting was parked in {each.report.parked:.0%} of rounds, because "
            "it did not pay",
        )
        for each in section.comparison.heads
        if each.report.parked > 0.5
    ]


def peer_notices(peers: Sequence["PeerFigures"], plain_rate: float) -> tuple[Notice, ...]:
    """Of other engines on the same weights; `plain_rate` is our own plain decoding beside them."""
    found = []
    for peer in peers:
        if not peer.drafts and peer.decode.median > PEER_AHEAD * plain_rate:
            times = peer.decode.median / plain_rate
            text = (
                f"slow baseline: {peer.name} decodes without drafts {times:.2f} times as fast as "
                "our plain decoding, so speed-ups over ours flatter"
            )
            found.append(Notice("slow_baseline", text))
        if peer.like_its_plain is not None and peer.like_its_plain < peer.prompts:
            text = (
                f"{peer.name} is not lossless: with drafts it changes the text of "
                f"{peer.prompts - peer.like_its_plain} of {peer.prompts} prompts"
            )
            found.append(Notice("not_lossless", text))
    return tuple(found)


def expectation(section: "Section", notices: Sequence[Notice]) -> str:
    """One plain sentence for somebody who will use the first drafter on this machine; `notices` are
    all that concern the section."""
    heads = section.comparison.heads
    best = max(heads, key=lambda each: each.report.speedup.median)
    report, interval = best.report, section.of(best.head.name).interval
    if not section.comparison.is_timed:
        taus = [each.mean_tau for each in heads]
        low, high = min(taus), max(taus)
        return f"Expect {low:.2f} to {high:.2f} tokens per round; no time was measured."
    low, high = interval or (report.speedup.low, report.speedup.high)
    if report.prompts * report.trials < LEAST_ANSWERS:
        return "Too little was measured to say what to expect: use more prompts or trials."
    if reasons := [UNTOLD[kind] for kind in UNTOLD if kind in {each.kind for each in notices}]:
        return (
            f"This run cannot tell what to expect: {' and '.join(reasons)}. "
            "Measure again when nothing else runs."
        )
    text = {
        True: "with the same text",
        False: "with a different text",
        None: "with text of the same distribution",
    }[report.is_identical]
    if high < 1.0:
        return (
            f"Drafts do not pay here: expect {best.head.name} at {report.speedup.median:.2f} of "
            "the speed of plain decoding; --draft none is faster."
        )
    kinds = sorted(report.categories, key=lambda each: -each.speedup)
    parts = ", ".join(f"{each.category} {each.speedup:.2f}" for each in kinds)
    doubt = "" if low > 1.0 else " That is within noise of no gain at all."
    ends = dict.fromkeys(f"{each.speedup:.2f}" for each in (kinds[-1], kinds[0]))
    return (
        f"Expect {best.head.name} to answer {' to '.join(ends)} times as fast as plain "
        f"decoding, {text} ({parts}).{doubt}"
    )
