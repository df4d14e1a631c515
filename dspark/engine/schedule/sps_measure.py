"""Measures an SPS table: what passes and drafts of a pair take on this machine."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from dspark.config import SamplingConfig
from dspark.drafters.base import Drafter, DraftSlot
from dspark.engine.sampling import BatchChooser, Sampler
from dspark.engine.schedule.sps_profile import CONTEXT_TOKENS, SpsCurve, SpsTable
from dspark.targets.base import KernelTarget, Slot, Target
from dspark.targets.expert_use import RoutesExperts
from dspark_kernels.cpu.argmax import argmax

TRIALS = 7
EXPERT_TRIALS = 3
SEVERAL = 4  # requests whose draft is timed too
FASTEST_MEMORY = 1e12  # bytes a second, of a CPU: reads of experts cost something


@torch.inference_mode()
def measure_sps(target: Target, drafter: Drafter, pair: str = "") -> SpsTable:
    """Medians on this machine, at a short context. Trials are interleaved, so that a slow moment
    affects all points alike; the first, in which memory is touched, is not counted."""
    counts = (1, SEVERAL) if target.spec.batches else (1,)
    rows = measured_rows(drafter.block_size)
    with _open_requests(target, drafter, 1, counts[-1], CONTEXT_TOKENS) as opened:
        (slot,), draft_slots, taps = opened
        verify: dict[int, list[float]] = {n: [] for n in rows}
        draft: dict[int, list[float]] = {n: [] for n in counts}
        reads = {n: 0.0 for n in rows}
        for _ in range(1 + TRIALS):
            _verify_seconds(target, [slot], 1)  # a plain pass comes behind another
            for n in rows:
                verify[n].append(_verify_seconds(target, [slot], n))
                reads[n] = _reads_of(target)
            for n in counts:
                _verify_seconds(target, [slot], drafter.block_size + 1)  # as rounds do
                draft[n].append(_draft_seconds(drafter, draft_slots[:n], taps))
        expert_seconds = _expert_seconds(target, slot, drafter.block_size + 1)
    for seconds in (*verify.values(), *draft.values()):
        del seconds[0]
    medians = [statistics.median(verify[n]) for n in rows]
    drafting = [statistics.median(draft[n]) for n in counts]
    return SpsTable(
        rows=tuple(rows),
        verify_seconds=tuple(_never_falling(medians)),
        requests=counts,
        draft_seconds=tuple(_never_falling(drafting)),
        spread=max(_spread(trial) for trial in (*verify.values(), draft[1])),
        measured_at=time.time(),
        pair=pair,
        expert_reads=tuple(reads.values()) if expert_seconds else (),
        expert_seconds=expert_seconds,
    )


@torch.inference_mode()
def measure_with_requests(
    target: Target, drafter: Drafter, num_requests: int, depth: int, trials: int
) -> SpsCurve:
    """Medians of requests with `depth` tokens of context each: plain, one draft each, whole
    blocks."""
    sizes = sorted({1, 2, drafter.block_size + 1})
    verify: dict[int, list[float]] = {size: [] for size in sizes}
    reads = {size: 0.0 for size in sizes}
    drafting = []
    with _open_requests(target, drafter, num_requests, num_requests, depth) as opened:
        slots, draft_slots, taps = opened
        for _ in range(trials):
            _verify_seconds(target, slots, 1)
            for size in sizes:
                verify[size].append(_verify_seconds(target, slots, size))
                reads[size] = _reads_of(target)
            drafting.append(_draft_seconds(drafter, draft_slots, taps))
    medians = _never_falling([statistics.median(verify[size]) for size in sizes])
    rows = tuple(size * num_requests for size in sizes)
    own = tuple(reads.values()) if isinstance(target, RoutesExperts) else ()
    return SpsCurve(num_requests, depth, rows, tuple(medians), statistics.median(drafting), own)


@contextmanager
def _open_requests(
    target: Target, drafter: Drafter, num_requests: int, num_drafting: int, depth: int
) -> Iterator[tuple[list[Slot], list[DraftSlot], torch.Tensor]]:
    """Slots of the target and of the drafter, with `depth` tokens each, and their taps."""
    slots, draft_slots = [], []
    context = torch.arange(depth, device=target.device) % 7
    taps = torch.empty(0)
    try:
        for _ in range(num_requests):
            slots.append(target.open())
            taps = target.prefill(slots[-1], context).taps.clone()
        for _ in range(num_drafting):
            draft_slots.append(drafter.open())
            drafter.extend([draft_slots[-1]], [context], [taps])
        yield slots, draft_slots, taps
    finally:
        for slot in slots:
            target.close(slot)
        for draft_slot in draft_slots:
            drafter.close(draft_slot)


def _reads_of(target: Target) -> float:
    """Routed experts that the last pass read."""
    use = target.expert_use() if isinstance(target, RoutesExperts) else None
    return 0.0 if use is None else float(use.reads)


def _expert_seconds(target: Target, slot: Slot, size: int) -> float:
    """Of reading one more expert: passes of as many rows, of one token and of different ones, do
    the same but for the experts. 0 for a target without, or whose tokens share all of them."""
    if not isinstance(target, RoutesExperts):
        return 0.0
    generator = torch.Generator().manual_seed(0)
    different = torch.randint(0, target.spec.vocab_size, (EXPERT_TRIALS, size), generator=generator)
    same: list[tuple[float, float]] = []
    mixed: list[tuple[float, float]] = []
    for tokens in different.to(target.device):
        for block, found in ((torch.zeros_like(tokens), same), (tokens, mixed)):
            found.append((_verify_seconds(target, [slot], size, block), _reads_of(target)))
    (seconds, reads), (longer, more) = (
        (statistics.median(each[0] for each in found), statistics.mean(each[1] for each in found))
        for found in (same, mixed)
    )
    price = (longer - seconds) / (more - reads) if more > reads else 0.0
    return max(price, target.expert_shape.num_bytes / FASTEST_MEMORY)


def _verify_seconds(
    target: Target, slots: Sequence[Slot], size: int, block: torch.Tensor | None = None
) -> float:
    """Of `size` rows for each of these requests, until the host has read what is likeliest."""
    if block is None:
        block = torch.zeros(size, dtype=torch.long, device=target.device)
    ids, tokens = [block.tolist()] * len(slots), [block] * len(slots)
    started = time.perf_counter()
    if isinstance(target, KernelTarget):  # as rounds do
        verified = target.verify_ids(slots, ids)
    else:
        verified = target.verify(slots, tokens)
    if verified.largest is None:
        argmax(verified.logits)[0].tolist()
    seconds = time.perf_counter() - started
    target.commit(slots, [0] * len(slots))
    return seconds


def _draft_seconds(drafter: Drafter, slots: Sequence[DraftSlot], taps: torch.Tensor) -> float:
    """Of a draft for all of these requests, until the host has read it, and of taking in the two
    tokens that a round adds."""
    device, depth = taps.device, len(taps)
    anchors = torch.zeros(len(slots), dtype=torch.long, device=device)
    chooser = BatchChooser([Sampler(SamplingConfig())] * len(slots))
    started = time.perf_counter()
    drafter.extend(slots, [anchors.new_zeros(2)] * len(slots), [taps[:2]] * len(slots))
    int(drafter.propose(slots, anchors, chooser).token_ids[0, -1])
    seconds = time.perf_counter() - started
    for slot in slots:
        drafter.truncate(slot, depth)
    return seconds


def measured_rows(block_size: int) -> list[int]:
    """The timed passes: every length of one block, and two of several requests."""
    full = block_size + 1
    return [*range(1, full + 1), 2 * full, 4 * full]


def _spread(seconds: Sequence[float]) -> float:
    lower, middle, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return (upper - lower) / middle


def _never_falling(seconds: Sequence[float]) -> list[float]:
    """A pass over fewer rows can be padded to more, so it never costs more than they do."""
    return [min(seconds[index:]) for index in range(len(seconds))]
