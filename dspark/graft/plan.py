"""What a grafting will do and cost, before anything of it starts."""

import time
from dataclasses import dataclass, replace
from itertools import islice

import torch
from safetensors import safe_open

from dspark.checkpoints.eagle3_config import DraftConfig
from dspark.config import Algorithm
from dspark.drafters.parameters import trained_parameters
from dspark.engine.session import Session, open_session, resolve_runtime
from dspark.errors import InputError
from dspark.graft.answers import AnswerSettings, write_answers
from dspark.graft.data import Answered, AnswerFile
from dspark.graft.job import GraftJob
from dspark.graft.onward import check_start
from dspark.graft.shape import build_head, draft_config
from dspark.graft.start import start_random
from dspark.graft.tap_cache import free_bytes, gib
from dspark.graft.taps import load_frozen
from dspark.graft.trainer import Trainer, trainable
from dspark.hub.pairs import PairFiles
from dspark.targets.dense import read_config

FLOAT, HALF = 4, 2
BYTES_A_TOKEN = 12  # of an answer file: the id in digits, and the text
MEASURED_ANSWERS, MEASURED_TOKENS, MEASURED_STEPS = 8, 32, 3
MEASURED_SECONDS = 12.0  # after which no further answer and no further step is begun
ALGORITHM_NOTES: dict[Algorithm, str] = {
    "dspark": "a block at once, corrected token by token",
    "dflash": "a block at once, no sequential head",
    "eagle3": "token after token, one layer",
    "mtp": "one token a round, one layer",
}
OWN_PROMPTS = tuple(f"Tell me something about the number {n}." for n in range(MEASURED_ANSWERS))


@dataclass(frozen=True, slots=True)
class PlanItem:
    """One decision, and why it was taken."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes held during training; taps are those kept instead of being computed again."""

    target: int
    head: int
    optimizer: int
    taps: int
    loss: int

    @property
    def total(self) -> int:
        return self.target + self.head + self.optimizer + self.taps + self.loss


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes left on disk in the end."""

    answers: int
    checkpoint: int
    head: int
    taps: int


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds of the whole run, at most: every answer as long as it may be.

    From `measured_answers` answers (0 where none is missing) and `measured_steps` steps.
    """

    answers: float
    steps: float
    measured_answers: int
    measured_steps: int


@dataclass(frozen=True, slots=True)
class Plan:
    """`duration` is None until it was measured."""

    items: tuple[PlanItem, ...]
    num_answers: int
    num_missing: int
    memory: Memory
    disk: Disk
    duration: Duration | None = None


def draw_plan(job: GraftJob) -> Plan:
    """From the target's config and the sizes of its tensors alone; nothing is loaded.

    Raises PairMismatchError for a head to go on from that does not have this shape.
    """
    config = job.config
    target = read_config(job.base.target).get_text_config()
    shape = draft_config(target, config, config.mask_token_id or 0)
    if job.init_from is not None:
        check_start(shape, job.init_from)
    kept = AnswerFile(job.data).read()
    there = len(kept)
    wanted = len(job.source.read().prompts) + job.source.num_self_written
    num_answers = max(there, wanted)
    parameters = trained_parameters(shape)
    shared = 2 * shape.vocab_size * shape.hidden_size if job.full_head else 0
    tokens = sum(min(len(answer.token_ids), config.length) for answer in kept)
    tokens += config.length * (num_answers - there)
    taps = 0 if job.tap_cache is None else tokens * _view_bytes(shape)
    answers = config.max_answer_tokens * BYTES_A_TOKEN * (num_answers - there)
    return Plan(
        items=(*_items(job, shape), *_tap_cache(job, taps)),
        num_answers=num_answers,
        num_missing=num_answers - there,
        memory=_memory(job, shape, num_answers),
        disk=Disk(
            answers=answers + (job.data.stat().st_size if job.data.exists() else 0),
            checkpoint=3 * FLOAT * parameters,
            head=HALF * (parameters + shared),
            taps=taps,
        ),
    )


def measured(job: GraftJob, plan: Plan) -> Plan:
    """The plan with its duration, from a few answers and steps of which nothing is kept."""
    kept = AnswerFile(job.data).read()[:MEASURED_ANSWERS]
    written: list[Answered] = []
    answer_seconds = 0.0
    if plan.num_missing or not kept:
        started = time.perf_counter()
        written = _write_some(job)
        tokens = sum(len(answer.answer_ids) for answer in written)
        seconds_a_token = (time.perf_counter() - started) / max(1, tokens)
        answer_seconds = plan.num_missing * job.config.max_answer_tokens * seconds_a_token
    seconds = _step_seconds(job, [*kept, *written])
    duration = Duration(
        answers=answer_seconds,
        steps=job.config.steps * sum(seconds) / len(seconds),
        measured_answers=len(written),
        measured_steps=len(seconds),
    )
    return replace(plan, duration=duration)


def _items(job: GraftJob, shape: DraftConfig) -> tuple[PlanItem, ...]:
    config = job.config
    asked = "as asked" if job.init_from is None else "the head's own"
    taps = asked if config.taps else "evenly spread, never the last layer"
    begun = {"target": "from the target's last layers", "random": "from nothing"}[config.init]
    own = asked if config.intermediate_size else "layers as wide as the target's"
    rank = config.markov_rank if config.markov_type != "none" else 0
    is_whole = config.loss_vocabulary == 0
    limit = config.draft_vocabulary
    vocabulary = str(limit) if limit else "the data's tokens"
    return (
        PlanItem(
            "base",
            job.base.name,
            f"{shape.num_target_layers} layers of the target, frozen",
        ),
        PlanItem("algorithm", config.algorithm, ALGORITHM_NOTES[config.algorithm]),
        PlanItem("layers", str(shape.num_layers), f"{own}; {_start_of(job, begun)}"),
        PlanItem("taps", ", ".join(map(str, shape.target_layer_ids)), taps),
        PlanItem("block", str(shape.block_size), "tokens drafted a round"),
        PlanItem(
            "rank",
            str(rank),
            "of the table that knows the last token" if rank else "no Markov head",
        ),
        PlanItem(
            "draft vocabulary",
            str(shape.vocab_size) if is_whole else vocabulary,
            "the loss is over all tokens" if is_whole else "as --loss-vocabulary asks",
        ),
    )


def _view_bytes(shape: DraftConfig) -> int:
    """Of a token's taps and final hidden state, in bf16."""
    return (shape.tap_width + shape.hidden_size) * HALF


def _tap_cache(job: GraftJob, num_bytes: int) -> tuple[PlanItem, ...]:
    if job.tap_cache is None:
        return ()
    free = free_bytes(job.tap_cache)
    there = f"{gib(free)} free there" if num_bytes <= free else f"only {gib(free)} free there"
    return (PlanItem("tap cache", f"at most {gib(num_bytes)}", f"{job.tap_cache}, {there}"),)


def _start_of(job: GraftJob, begun: str) -> str:
    return f"begun {begun}" if job.init_from is None else f"going on from {job.init_from}"


def _memory(job: GraftJob, shape: DraftConfig, num_answers: int) -> Memory:
    config = job.config
    width = FLOAT if resolve_runtime(job.runtime).dtype == "float32" else HALF
    parameters = trained_parameters(shape)
    taps = num_answers * config.length * _view_bytes(shape)
    rows = min(config.chunk_rows, config.batch_size * config.anchors * config.block_size)
    rank = config.markov_rank if config.markov_type != "none" else 0
    joined = shape.vocab_size * (shape.hidden_size + rank)
    return Memory(
        target=width * _target_parameters(job),
        head=FLOAT * parameters,
        optimizer=3 * FLOAT * parameters,  # gradients and Adam's two moments
        taps=min(taps, int(config.tap_memory_gib * 2**30)),
        loss=FLOAT * (joined + 3 * rows * shape.vocab_size),
    )


def _target_parameters(job: GraftJob) -> int:
    total = 0
    for path in sorted(job.base.target.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                total += torch.Size(file.get_slice(name).get_shape()).numel()
    return total


def _write_some(job: GraftJob) -> list[Answered]:
    config = job.config
    *_, session = open_session(PairFiles(job.base.name, job.base.target, None), job.runtime)
    assert isinstance(session, Session)
    tokens = min(config.max_answer_tokens, MEASURED_TOKENS)
    settings = AnswerSettings(tokens, config.answer_temperature, config.seed)
    prompts = job.source.read().prompts[:MEASURED_ANSWERS] or OWN_PROMPTS
    written = []
    started = time.perf_counter()
    for answer in write_answers(session, prompts, settings, config.length // 2):
        written.append(answer)
        if time.perf_counter() - started > MEASURED_SECONDS:
            break
    session.close()
    return written


def _step_seconds(job: GraftJob, answers: list[Answered]) -> list[float]:
    """Of a few steps, each on a whole batch; the first, which warms up, counts only if alone."""
    config = job.config
    usable = trainable(answers, config.length)
    if not usable:
        raise InputError("no answer is long enough to measure a step on", "Give other prompts.")
    batch = [usable[i % len(usable)] for i in range(config.batch_size)]
    resolved = resolve_runtime(job.runtime)
    target = load_frozen(
        job.base.target,
        device=torch.device(resolved.device),
        dtype=getattr(torch, resolved.dtype),
    )
    shape = draft_config(target.config, config, config.mask_token_id or 0)
    target.tap(shape.target_layer_ids)
    head = build_head(shape)
    start_random(head, torch.Generator().manual_seed(config.seed))
    trainer = Trainer(head.to(resolved.device), target, batch, config)
    seconds: list[float] = []
    for report in islice(trainer.steps(), MEASURED_STEPS):
        seconds.append(report.seconds)
        if sum(seconds) > MEASURED_SECONDS:
            break
    return seconds[1:] or seconds
