"""The duration of a grafting, measured on a few rounds and steps whose results are discarded.

Loading and the warm-up round and step do not count; medians exclude disturbances by other
programs.
"""

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from dspark.config import EngineConfig, SamplingConfig, StopConfig
from dspark.drafters.kinds import build_head
from dspark.engine.request import Request
from dspark.engine.runtime import resolve_runtime
from dspark.engine.session import Session
from dspark.errors import InputError
from dspark.events import Failed, Finished, PrefillProgress, Round
from dspark.graft.data.answer_file import Answer
from dspark.graft.data.corpus import open_corpus_session
from dspark.graft.data.missing_answers import missing_prompts, own_missing
from dspark.graft.data.retokenized_answers import settled_answers
from dspark.graft.data.write_answers import SELF_PROMPT_TOKENS, encode_prompt
from dspark.graft.head.init_from_target import start_random
from dspark.graft.head.shape import draft_config
from dspark.graft.job import GraftJob
from dspark.graft.target.frozen_target import load_frozen
from dspark.graft.train.precision import product_precision
from dspark.graft.train.trainer import Trainer, trainable

PROMPTS, ROUNDS, STEPS = 16, 64, 8  # at most, besides warm-up
SECONDS = 12.0  # after this, no further round or step starts
OWN_PROMPTS = tuple(f"Tell me something about the number {n}." for n in range(PROMPTS))


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds: the median and quartiles of the measurements."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Span":
        if len(seconds) < 2:
            return cls(seconds[0], seconds[0], seconds[0])
        low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(middle, low, high)

    def times(self, factor: float, more: float = 0.0) -> "Span":
        values = (value * factor + more for value in (self.middle, self.low, self.high))
        return Span(*values)


@dataclass(frozen=True, slots=True)
class Duration:
    """Of the whole run, at most: every answer at its maximum length.

    From `measured_rounds` rounds of answers (0 if none is missing) and `measured_steps` steps.
    """

    answers: Span
    steps: Span
    measured_rounds: int
    measured_steps: int


@dataclass(frozen=True, slots=True)
class _Pace:
    """Of answers written in parallel: seconds per prompt read and per token written."""

    prompt: float
    tokens: list[float]
    written: list[Answer]


def estimate(job: GraftJob) -> Duration:
    """Loads the target, first to write and then to train, as the run does."""
    settled = settled_answers(job.data, job.base.target).answers
    answered = {answer.prompt for answer in settled}
    prompts, num_written = missing_prompts(job, answered).prompts, own_missing(job, answered)
    pace = _Pace(0.0, [], [])
    if prompts or num_written or not settled:
        pace = _pace_of_answers(job, prompts[:PROMPTS] or OWN_PROMPTS)
    answers = Span(0.0, 0.0, 0.0)
    if prompts or num_written:
        tokens = (
            len(prompts) + num_written
        ) * job.config.max_answer_tokens + num_written * SELF_PROMPT_TOKENS[1]
        answers = Span.of(pace.tokens).times(tokens, (len(prompts) + num_written) * pace.prompt)
    seconds = _seconds_of_steps(job, [*settled[:PROMPTS], *pace.written])
    steps = Span.of(seconds).times(job.config.steps)
    return Duration(answers, steps, len(pace.tokens), len(seconds))


def _pace_of_answers(job: GraftJob, prompts: Sequence[str]) -> _Pace:
    """As many at once as the run writes, or as there are sample prompts."""
    config = job.config
    engine_config = EngineConfig(max_requests=config.answers_at_once, prefix_cache_bytes=0)
    session = open_corpus_session(job.base, job.runtime, (), 0, engine_config)
    try:
        return _pace(session, prompts, config.max_answer_tokens, config.answer_temperature)
    finally:
        session.close()


@dataclass(slots=True)
class _Step:
    """One step of the engine: some of the prompts, then one round."""

    has_read: bool = False
    num_read: int = 0  # prompts completed in this step
    num_tokens: int = 0
    round_seconds: float = 0.0

    def count(self, event: PrefillProgress | Round) -> None:
        if isinstance(event, Round):
            self.num_tokens += event.accepted + 1
            self.round_seconds = event.seconds
        else:
            self.has_read = True
            self.num_read += event.done == event.total


def _pace(session: Session, prompts: Sequence[str], most: int, temperature: float) -> _Pace:
    """The first round warms up, and counts only if it is alone."""
    engine = session.engine
    capacity = engine.config.max_requests if engine.target.spec.batches else 1
    stop = StopConfig(max_tokens=most, ignore_stop_tokens=True)
    num_tokens: dict[int, list[int]] = {}
    asked: dict[int, tuple[int, ...]] = {}
    for seed, prompt in enumerate(prompts[:capacity]):
        ids = encode_prompt(session, prompt)
        request_id = engine.submit(Request(ids, SamplingConfig(temperature, seed=seed), stop, True))
        asked[request_id], num_tokens[request_id] = ids, []
    reads, rounds = list[float](), list[float]()
    begun, reading = time.perf_counter(), 0.0
    while engine.num_requests and len(rounds) <= ROUNDS:
        if time.perf_counter() - begun >= SECONDS and rounds:
            break
        started = time.perf_counter()
        step = _Step()
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if not isinstance(event, Finished):
                num_tokens[event.request_id] += [piece.token_id for piece in event.pieces]
                step.count(event)
        seconds = time.perf_counter() - started
        if step.has_read:
            reading += seconds - step.round_seconds
        if step.num_read:
            reads.append(reading / step.num_read)
            reading = 0.0
        if step.num_tokens:
            rounds.append((step.round_seconds if step.has_read else seconds) / step.num_tokens)
    written = [_as_long_as_may_be(asked[i], num_tokens[i], most) for i in asked if num_tokens[i]]
    return _Pace(statistics.median(reads), rounds[1:] or rounds, written)


def _as_long_as_may_be(prompt_ids: tuple[int, ...], told: list[int], most: int) -> Answer:
    return Answer(prompt_ids, tuple(islice(itertools.cycle(told), most)), "", "")


def _seconds_of_steps(job: GraftJob, answers: Sequence[Answer]) -> list[float]:
    """Seconds of a step, measured repeatedly; large batches by a few sequences, scaled linearly."""
    resolved = resolve_runtime(job.runtime)
    precision = product_precision(job.config.precision, resolved.device)
    config = replace(job.config, precision=precision)
    usable = trainable(answers, config.length)
    if not usable:
        raise InputError("no answer is long enough to measure a step", "Give other prompts.")
    target = load_frozen(
        job.base.target,
        device=torch.device(resolved.device),
        dtype=getattr(torch, resolved.dtype),
        precision=precision,
    )
    shape = draft_config(target.config, config, config.mask_token_id or 0)
    target.tap(shape.target_layer_ids)
    target.fit(1)  # as of answers too many to keep their taps
    head = build_head(shape)
    start_random(head, torch.Generator().manual_seed(config.seed))
    head = head.to(resolved.device)

    def timed(sequences: int, most: int) -> list[float]:
        whole = sequences == config.batch_size
        few = config if whole else replace(config, batch_size=sequences, accumulate=1)
        few = replace(few, steps=most)
        batch = [usable[i % len(usable)] for i in range(max(sequences, len(usable)))]
        seconds = list[float]()
        for report in islice(Trainer(head, target, batch, few).steps(), most):
            seconds.append(report.seconds * config.batch_size / sequences)
            if sum(seconds) * sequences / config.batch_size > SECONDS:
                break
        return seconds

    timed(1, 1)  # warms up
    alone = timed(1, 1)[0] / config.batch_size
    fitting = int(SECONDS / STEPS / alone)
    return timed(min(max(fitting, 1), config.batch_size), STEPS)
