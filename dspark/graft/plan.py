"""The plan of a grafting and its cost, before it starts."""

from dataclasses import dataclass, replace

from dspark.checkpoints.head_config import HeadConfig
from dspark.config import ALGORITHMS, EngineConfig
from dspark.drafters.kinds import trained_parameters
from dspark.engine.runtime import resolve_runtime
from dspark.graft.data.missing_answers import missing_prompts, own_missing
from dspark.graft.data.retokenized_answers import settled_answers
from dspark.graft.estimate import Duration, estimate
from dspark.graft.head.init_from_head import check_start
from dspark.graft.head.shape import draft_config
from dspark.graft.job import GraftJob
from dspark.graft.train.precision import product_precision
from dspark.hub.footprint import Footprint, of_folders
from dspark.hub.memory_fit import room_for, rooms
from dspark.hub.memory_needed import Room, cache_bytes, pass_bytes, program_bytes, weight_bytes
from dspark.machine import free_disk, gibibytes
from dspark.targets.dense_files import read_config

FLOAT, HALF = 4, 2
BYTES_PER_TOKEN = 12  # of an answer file: the id in digits, and the text


@dataclass(frozen=True, slots=True)
class PlanItem:
    """One decision, with its reason."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in memory during training; `taps` are those kept instead of recomputed.

    `decoding`: a session with the head, on top of that, for the evaluation at the end. `answers`:
    the session that writes the answers beforehand.
    """

    target: int
    head: int
    optimizer: int
    taps: int
    loss: int
    decoding: int
    program: int
    answers: int

    @property
    def training(self) -> int:
        return sum((self.target, self.head, self.optimizer, self.taps, self.loss, self.decoding))

    @property
    def total(self) -> int:
        """At the peak."""
        return self.program + max(self.answers, self.training)


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes on disk at the end."""

    answers: int
    checkpoint: int
    head: int
    taps: int


@dataclass(frozen=True, slots=True)
class Plan:
    """`duration` is None until measured; `num_too_long` prompts get no answer."""

    items: tuple[PlanItem, ...]
    num_answers: int
    num_missing: int
    memory: Memory
    disk: Disk
    duration: Duration | None = None
    num_too_long: int = 0


def draw_plan(job: GraftJob) -> Plan:
    """From the target's config and the sizes of its tensors alone; nothing is loaded.

    Raises PairMismatchError if the head to continue from does not have this shape.
    """
    config = job.config
    target = read_config(job.base.target).get_text_config()
    shape = draft_config(target, config, config.mask_token_id or 0)
    if job.init_from is not None:
        check_start(shape, job.init_from)
    settled = settled_answers(job.data, job.base.target).answers
    answered = {answer.prompt for answer in settled}
    fitting = missing_prompts(job, answered)
    if not settled and not job.source.num_self_written:
        fitting.require_some()
    there, num_missing = len(settled), len(fitting.prompts) + own_missing(job, answered)
    num_answers = there + num_missing
    parameters = trained_parameters(shape)
    shared = 2 * shape.vocab_size * shape.hidden_size if job.full_head else 0
    tokens = sum(min(len(answer.token_ids), config.length) for answer in settled)
    tokens += config.length * num_missing
    taps = 0 if job.tap_cache is None else tokens * _view_bytes(shape)
    answers = config.max_answer_tokens * BYTES_PER_TOKEN * num_missing
    return Plan(
        items=(*_items(job, shape), *_tap_cache(job, taps)),
        num_answers=num_answers,
        num_missing=num_missing,
        num_too_long=fitting.num_long,
        memory=_memory(job, shape, num_answers, num_missing),
        disk=Disk(
            answers=answers + (job.data.stat().st_size if job.data.exists() else 0),
            checkpoint=3 * FLOAT * parameters,
            head=HALF * (parameters + shared),
            taps=taps,
        ),
    )


def measured(job: GraftJob, plan: Plan) -> Plan:
    """The plan with its duration, from a few answers and steps that are discarded."""
    return replace(plan, duration=estimate(job))


def _items(job: GraftJob, shape: HeadConfig) -> tuple[PlanItem, ...]:
    config = job.config
    asked = "as asked" if job.init_from is None else "the head's own"
    taps = asked if config.taps else "evenly spaced, never the last layer"
    begun = {"target": "from the target's last layers", "random": "from scratch"}[config.init]
    width_reason = asked if config.intermediate_size else "layers as wide as the target's"
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
        PlanItem("algorithm", config.algorithm, ALGORITHMS[config.algorithm].summary),
        PlanItem("layers", str(shape.num_layers), f"{width_reason}; {_start_of(job, begun)}"),
        PlanItem("taps", ", ".join(map(str, shape.target_layer_ids)), taps),
        PlanItem("block", str(shape.block_size), "tokens drafted per round"),
        PlanItem(
            "rank",
            str(rank),
            "of the table for the last token" if rank else "no Markov head",
        ),
        PlanItem(
            "draft vocabulary",
            str(shape.vocab_size) if is_whole else vocabulary,
            "the loss covers all tokens" if is_whole else "set by --loss-vocabulary",
        ),
        _products(job),
    )


def _products(job: GraftJob) -> PlanItem:
    asked = job.config.precision
    precision = product_precision(asked, resolve_runtime(job.runtime).device)
    reason = "as asked"
    if asked == "auto":
        has = "has" if precision == "bfloat16" else "has no"
        reason = f"the processor {has} units for products of bfloat16"
    return PlanItem("products", precision, reason)


def _view_bytes(shape: HeadConfig) -> int:
    """Bytes of a token's taps and final hidden state, in bf16."""
    return (shape.tap_width + shape.hidden_size) * HALF


def _tap_cache(job: GraftJob, num_bytes: int) -> tuple[PlanItem, ...]:
    if job.tap_cache is None:
        return ()
    free = free_disk(job.tap_cache)
    there = (
        f"{gibibytes(free)} free there"
        if num_bytes <= free
        else f"only {gibibytes(free)} free there"
    )
    return (PlanItem("tap cache", f"at most {gibibytes(num_bytes)}", f"{job.tap_cache}, {there}"),)


def _start_of(job: GraftJob, begun: str) -> str:
    return f"starting {begun}" if job.init_from is None else f"continuing from {job.init_from}"


def _memory(job: GraftJob, shape: HeadConfig, num_answers: int, num_missing: int) -> Memory:
    config = job.config
    room, of = room_for(job.runtime, rooms()), of_folders(job.base.target, None)
    parameters = trained_parameters(shape)
    taps = num_answers * config.length * _view_bytes(shape)
    rows = min(config.chunk_rows, config.batch_size * config.anchors * config.block_size)
    rank = config.markov_rank if config.markov_type != "none" else 0
    joined = shape.vocab_size * (shape.hidden_size + rank)
    cache = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    with_head = of.plus_head(parameters, cache)
    at_once, longest = min(config.answers_at_once, num_missing), config.length // 2
    return Memory(
        target=room.value_bytes * of.values,
        head=FLOAT * parameters,
        optimizer=3 * FLOAT * parameters,  # gradients and Adam's two moments
        taps=min(taps, int(config.tap_memory_gib * 2**30)),
        loss=FLOAT * (joined + 3 * rows * shape.vocab_size),
        decoding=_session_bytes(with_head, room, config.eval_prompts, config.length),
        program=program_bytes(replace(of, coded_values=0), room),
        answers=_session_bytes(of, room, at_once, longest + config.max_answer_tokens),
    )


def _session_bytes(of: Footprint, room: Room, num_requests: int, tokens: int) -> int:
    """Of a target, with or without a head, that decodes that many requests at once; 0 for none."""
    if not num_requests:
        return 0
    slots = 1 << (min(num_requests, EngineConfig().max_requests) - 1).bit_length()
    caches = (slots if of.is_dense else 1) * cache_bytes(of, room, tokens)
    return weight_bytes(of, room) + caches + pass_bytes(of, room)
