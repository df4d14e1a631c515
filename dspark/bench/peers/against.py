"""Our arms and other engines' in turns on the same prompts, greedy; their rates and agreement."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dspark.bench.config import ARMS, PLAIN
from dspark.bench.peers.arm import Answer, PeerArm
from dspark.bench.report import Figure
from dspark.bench.runner import BenchProgress

Trials = Sequence[Sequence[Answer]]  # [trials][prompts]
WARMUP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class PeerFigures:
    """`like_its_plain`: prompts that an arm with drafts answers as its engine does without;
    `like_our_plain`: as our plain decoding does. Both up to where the shorter answer ends, since
    engines count the token that ends an answer differently. None where it would be itself."""

    name: str
    drafts: bool
    decode: Figure
    end_to_end: Figure
    prompts: int
    like_its_plain: int | None
    like_our_plain: int | None


@dataclass(frozen=True, slots=True)
class Against:
    ours: tuple[PeerFigures, ...]
    peers: tuple[PeerFigures, ...]

    @property
    def plain_rate(self) -> float:
        """Tokens per second of our own plain decoding beside the others."""
        return next(each.decode.median for each in self.ours if not each.drafts)

    @property
    def best(self) -> PeerFigures:
        return max(self.peers, key=lambda each: each.decode.median)

    def over_best(self, name: str) -> float:
        """How many times as fast as the best peer one of our arms decodes; paired by trial."""
        ours = next(each for each in self.ours if each.name == name)
        return ours.decode.paired_ratio(self.best.decode).median


def run_against(
    arms: Sequence[PeerArm], prompts: Sequence[Sequence[int]], trials: int, max_tokens: int
) -> Generator[BenchProgress, None, Against]:
    answers = yield from answers_in_turns(arms, prompts, trials, max_tokens)
    figures = [peer_figures(arm, answers) for arm in arms]
    return Against(
        tuple(each for each in figures if each.name in ARMS),
        tuple(each for each in figures if each.name not in ARMS),
    )


def answers_in_turns(
    arms: Sequence[PeerArm], prompts: Sequence[Sequence[int]], trials: int, max_tokens: int
) -> Generator[BenchProgress, None, dict[str, list[list[Answer]]]]:
    """Of each arm, trial by trial. Who goes first moves on with every prompt."""
    answers: dict[str, list[list[Answer]]] = {arm.name: [] for arm in arms}
    total, done = len(arms) * len(prompts) * trials, 0
    for arm in arms:
        arm.answer(prompts[0], WARMUP_TOKENS)
    for trial in range(trials):
        for arm in arms:
            answers[arm.name].append([])
        for index, prompt in enumerate(prompts):
            for arm in _rotated(arms, trial + index):
                yield BenchProgress(done, total, arm.name, trial, None)
                answers[arm.name][trial].append(arm.answer(prompt, max_tokens))
                done += 1
    return answers


def _rotated(arms: Sequence[PeerArm], by: int) -> Iterator[PeerArm]:
    start = by % len(arms)
    yield from (*arms[start:], *arms[:start])


def peer_figures(arm: PeerArm, answers: Mapping[str, Trials]) -> PeerFigures:
    own = answers[arm.name]
    return PeerFigures(
        name=arm.name,
        drafts=arm.drafts,
        decode=decode_figure(own),
        end_to_end=end_to_end_figure(own),
        prompts=len(own[0]),
        like_its_plain=agreement(own, answers[arm.plain]) if arm.drafts else None,
        like_our_plain=agreement(own, answers[PLAIN]) if arm.name != PLAIN else None,
    )


def decode_figure(trials: Trials) -> Figure:
    """Tokens after the first per second of decoding, by trial."""
    return Figure(
        tuple(
            sum(len(each.token_ids) - 1 for each in answers)
            / sum(each.decode_seconds for each in answers)
            for answers in trials
        )
    )


def end_to_end_figure(trials: Trials) -> Figure:
    return Figure(
        tuple(
            sum(len(each.token_ids) for each in answers)
            / sum(each.prefill_seconds + each.decode_seconds for each in answers)
            for answers in trials
        )
    )


def agreement(trials: Trials, other: Trials) -> int:
    """Prompts answered alike in the first trial, up to where the shorter answer ends."""
    pairs = zip(trials[0], other[0], strict=True)
    return sum(
        all(a == b for a, b in zip(one.token_ids, two.token_ids, strict=False))
        for one, two in pairs
    )
