"""A self-test of a pair: does the head draft best as configured, or were its files misread?

The target continues a few prompts greedily. At the same places of these texts the head drafts as
configured and under each neighbouring convention, always given the target's own tokens, and the
expected acceptance of its first drafts is compared place by place.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from dspark.checkpoints.dspark_config import calibrated_for
from dspark.checkpoints.heads import read_draft_config
from dspark.config import RuntimeConfig
from dspark.engine.runtime import resolve_runtime
from dspark.errors import InputError
from dspark.events import LoadProgress
from dspark.hub.catalog.pairs import PairFiles
from dspark.probe.material import (
    Text,
    default_prompts,
    gather,
    possible_masks,
    target_theta,
)
from dspark.probe.misreadings import Convention, neighbours
from dspark.probe.probed_head import ProbedHead, Scores
from dspark.targets.dense_files import read_config
from dspark.targets.load import load_target

MIN_PROMPTS = 4
MIN_GAIN = 0.015  # of acceptance: less does not count as a misreading
NUM_ERRORS = 4.0  # standard errors: of a dozen prompts: one neighbour in a thousand by chance
SCREENED = 2  # places per prompt, enough to rule out a clearly worse neighbour


@dataclass(frozen=True, slots=True)
class Trial:
    """A neighbouring convention compared with the configured one, over drafts that both made.

    `gain` of expected acceptance, with its standard error.
    """

    fault: str
    acceptance: float
    configured: float
    gain: float
    error: float

    @property
    def threshold(self) -> float:
        return max(MIN_GAIN, NUM_ERRORS * self.error)

    @property
    def is_better(self) -> bool:
        return self.gain > self.threshold

    @property
    def may_be_better(self) -> bool:
        """Whether a significant gain is still possible."""
        return self.gain + NUM_ERRORS * self.error > MIN_GAIN


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """The first drafts as configured, and the neighbours, best first.

    acceptance: of rejection sampling at temperature 1, given that all drafts before were accepted;
    agreement: drafts that are the target's likeliest token. calibration: of its confidences.
    """

    prompts: int
    places: int
    acceptance_by_position: tuple[float, ...]
    agreement_by_position: tuple[float, ...]
    trials: tuple[Trial, ...]
    calibration: str | None = None

    @property
    def fault(self) -> str | None:
        """The misreading in one sentence; None if the head is best as configured."""
        best = next((trial for trial in self.trials if trial.is_better), None)
        if best is None:
            return None
        return (
            f"{best.fault}: read so, its first drafts are accepted with {best.acceptance:.0%} "
            f"instead of {best.configured:.0%}"
        )

    def figures(self) -> dict[str, object]:
        """All of it, ready for JSON."""
        return {**asdict(self), "tau_of_first_drafts": self.tau, "fault": self.fault}

    @property
    def tau(self) -> float:
        """Expected tokens per round from the first drafts, including the target's own."""
        survival = torch.tensor(self.acceptance_by_position).cumprod(0)
        return 1.0 + float(survival.sum())


def probe(
    files: PairFiles,
    runtime: RuntimeConfig = RuntimeConfig(),
    prompts: Sequence[tuple[int, ...]] | None = None,
) -> Generator[LoadProgress, None, ProbeReport]:
    """The pair's head on answers that its target writes to `prompts`, our own by default."""
    if files.draft is None:
        raise InputError("a pair without a head cannot be probed", "Give one with --draft.")
    yield LoadProgress("reading the pair", 0, 1)
    resolved = resolve_runtime(runtime)
    config = read_draft_config(files.draft)
    layers = _tapped(config.target_layer_ids, files.target)
    target = load_target(
        files.target,
        tap_layers=layers,
        device=torch.device(resolved.device),
        dtype=getattr(torch, resolved.dtype),
    )
    head = ProbedHead(files.draft, target)
    prompts = default_prompts(files.target) if prompts is None else prompts
    texts: list[Text] = []
    for text in gather(target, layers, prompts):
        texts.append(text)
        yield LoadProgress("the model writes", len(texts), len(prompts))
    mask = getattr(config, "mask_token_id", None)
    others = neighbours(
        config,
        num_layers=target.spec.num_layers,
        thetas=(target_theta(files.target),),
        masks=() if mask is None else possible_masks(files.target, mask, config.vocab_size),
    )
    report = yield from compare(head, texts, others)
    return replace(report, calibration=calibrated_for(config))


def compare(
    head: ProbedHead, texts: Sequence[Text], others: Sequence[Convention]
) -> Generator[LoadProgress, None, ProbeReport]:
    """The head as configured beside `others`; those that are plainly worse only in a few places."""
    places = [text.anchors(head.depth) for text in texts]
    texts = [text for text, found in zip(texts, places, strict=True) if found]
    places = [found for found in places if found]
    if len(texts) < MIN_PROMPTS:
        raise InputError(
            f"too few answers are long enough to probe the pair on: {len(texts)} of {MIN_PROMPTS}",
            "The target ends its answers after a few tokens; its files may be damaged.",
        )
    screened = [found[:SCREENED] for found in places]
    configured = head.scores(texts, places, Convention())
    trials = []
    for done, other in enumerate(others):
        yield LoadProgress("comparing conventions", done, len(others))
        trial = _trial(other, head.scores(texts, screened, other), configured)
        if trial.may_be_better:
            trial = _trial(other, head.scores(texts, places, other), configured)
        trials.append(trial)
    return ProbeReport(
        prompts=len(texts),
        places=sum(map(len, places)),
        acceptance_by_position=_means(configured.accepts),
        agreement_by_position=_means(configured.agrees),
        trials=tuple(sorted(trials, key=lambda trial: (trial.is_better, trial.gain), reverse=True)),
    )


def _trial(other: Convention, scores: Scores, configured: Scores) -> Trial:
    """Paired by place; the error is of the mean over prompts, whose places are correlated."""
    before = configured.accepts[:, : scores.accepts.shape[1]]
    gains = scores.accepts - before
    of_prompts = gains.flatten(1).nanmean(1)
    of_prompts = of_prompts[~of_prompts.isnan()]
    error = float(of_prompts.std()) / math.sqrt(len(of_prompts))
    both = ~gains.isnan()
    return Trial(
        fault=other.fault,
        acceptance=float(scores.accepts[both].mean()),
        configured=float(before[both].mean()),
        gain=float(of_prompts.mean()),
        error=error,
    )


def _means(scores: torch.Tensor) -> tuple[float, ...]:
    return tuple(scores.flatten(0, 1).nanmean(0).tolist())


def _tapped(taps: Sequence[int], target: Path) -> tuple[int, ...]:
    """The head's taps and their neighbouring layers, as far as the target has them."""
    num_layers = int(read_config(target).get_text_config().num_hidden_layers)
    near = {tap + shift for tap in taps for shift in (-1, 0, 1)}
    return tuple(sorted(near & set(range(-1, num_layers))))
