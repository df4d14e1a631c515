"""Plain step, draft, verification and whole round, each one CUDA graph of a chain of kernels."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from dspark.config import DraftWeights
from dspark.drafters.paged import PagedDSparkDrafter
from dspark.targets.dense import DenseTarget
from dspark_kernels import AcceptedBlock, DraftedBlock, Filters, Races, accept_block
from gpu_parts.models import open_full, pass_at, random_drafter, random_target
from gpu_parts.setting import Record, Setting, attempt
from gpu_parts.shapes import BLOCK_SIZE, PUBLISHED_TAU, ModelShape
from gpu_parts.stopwatch import Arm, Stopwatch, against_floor

CHAIN = (
    "the passes of the dense target and the paged drafter, random weights; no engine around them"
)
DRAFT_KINDS: tuple[DraftWeights, ...] = (
    "int8",
    "fp8",
)  # copies of the head's weights: the gain of a lighter head
PROFILED_KERNELS = 14


def time_rounds(setting: Setting) -> Iterator[Record]:
    stopwatch = Stopwatch(setting)
    for shape in setting.cases(setting.shapes):
        targets: list[DenseTarget] = []
        found = attempt({"shape": shape.name}, lambda s=shape: made_room(s, setting))
        if found.get("skipped") or found.get("error"):
            yield found
            continue
        for context in setting.contexts:
            facts = {"shape": shape.name, "context": context, "chain": CHAIN}
            yield attempt(
                facts, lambda s=shape, c=context, t=targets: time_shape(setting, stopwatch, s, c, t)
            )


def made_room(shape: ModelShape, setting: Setting) -> Record:
    """Skipped if the card lacks the memory."""
    if setting.device.type != "cuda":
        return {}
    torch.cuda.empty_cache()
    table = shape.head_bytes()
    needed = int(1.25 * (shape.step_bytes(8192) + shape.draft_bytes(8192) + 3 * table))
    free, _ = torch.cuda.mem_get_info(setting.device)
    if free >= needed:
        return {}
    return {"skipped": f"{needed / 2**30:.0f} GiB needed, {free / 2**30:.0f} GiB free"}


def time_shape(
    setting: Setting, stopwatch: Stopwatch, shape: ModelShape, context: int, kept: list[DenseTarget]
) -> Record:
    """`kept` holds the target for the next context."""
    if not kept:
        kept.append(random_target(shape, setting))
    chain = Chain(shape, kept[0], context, setting)
    arms: dict[str, Arm] = {name: Arm(run) for name, run in chain.parts().items()}
    if setting.is_tiny:
        arms = {name: arms[name] for name in ("plain", "round")}
    for kind in DRAFT_KINDS[: 0 if setting.is_tiny else None]:
        draft = Draft(random_drafter(shape, chain.target, setting, kind), context)
        arms[f"propose {kind}"] = Arm(lambda d=draft: chain.propose(d))
        arms[f"round, draft {kind}"] = Arm(lambda d=draft: chain.round(d))
    timings = stopwatch.measure(arms)
    step, drafted = shape.step_bytes(context), shape.draft_bytes(context)
    sizes = {"plain": step, "verify": step, "draft": drafted, "round": step + drafted}
    for name, num_bytes in sizes.items():
        if name not in timings:
            continue
        timings[name] = against_floor(timings[name], num_bytes, setting)
        if timings[name].get("floor_us") and timings[name].get("us"):
            timings[name]["over_floor"] = timings[name]["us"] / timings[name]["floor_us"]
    record: Record = {"times": timings, "ok": not any("error" in t for t in timings.values())}
    record |= projections(shape, timings)
    if setting.device.type == "cuda" and context == setting.contexts[0]:
        for name in ("plain", "round"):
            run = chain.parts()[name]
            record[f"{name} by kernel"] = attempt({}, lambda r=run: {"kernels": by_kernel(r)})
    return record


def projections(shape: ModelShape, timings: dict[str, Record]) -> Record:
    """Published accepted lengths over measured times: no measurement of a speed-up."""
    plain = timings["plain"].get("us")
    record: Record = {}
    for name, timing in timings.items():
        if plain and timing.get("us") and name.startswith("round"):
            record[name] = {
                kind: {
                    "accepted": tau,
                    "projected_speedup": tau * plain / timing["us"],
                    "projected_tokens_per_second": tau / timing["us"] * 1e6,
                }
                for kind, tau in PUBLISHED_TAU[shape.name].items()
            }
    if not record:
        return {}
    return {"plain_tokens_per_second": 1e6 / plain, "projection": record}


class Chain:
    """One request at a fixed context: every replay of a graph sees the same lengths."""

    def __init__(
        self, shape: ModelShape, target: DenseTarget, context: int, setting: Setting
    ) -> None:
        count = BLOCK_SIZE + 1
        self.target = target
        self.draft = Draft(random_drafter(shape, target, setting), context)
        self.state = RoundState.of(setting.device, context)
        self.token = torch.ones(1, dtype=torch.int64, device=setting.device)
        self.ids = torch.arange(1, count + 1, device=setting.device)
        width = shape.num_taps * shape.hidden_size
        self.taps = torch.randn(count, width, device=setting.device, dtype=torch.bfloat16)
        cache, slots = target.cache, open_full(target.cache, context + 2 * count)
        self.plain_rows = pass_at(cache, slots, [context], [1], causal=True)
        self.verify_rows = pass_at(cache, slots, [context], [count], causal=True)

    def parts(self) -> dict[str, Callable[[], Any]]:
        return {
            "plain": self.plain,
            "verify": lambda: self.target.run(self.ids, self.verify_rows),
            "propose": lambda: self.propose(self.draft),
            "extend": lambda: self.draft.extend(self.taps),
            "draft": self.whole_draft,
            "round": lambda: self.round(self.draft),
        }

    def plain(self) -> torch.Tensor:
        return self.target.run(self.token, self.plain_rows).logits.argmax(-1)

    def propose(self, draft: "Draft") -> DraftedBlock:
        return draft.propose(self.token, self.state)

    def whole_draft(self) -> None:
        """The parts of a round besides verification and acceptance."""
        self.propose(self.draft)
        self.draft.extend(self.taps)

    def round(self, draft: "Draft") -> AcceptedBlock:
        drafted = self.propose(draft)
        passed = self.target.run(self.token, self.verify_rows, drafted.token_ids)
        accepted = self.state.accept(drafted, passed.logits)
        draft.extend(passed.taps)
        return accepted


class Draft:
    """A drafter with the rows of a round: a block behind the context, and the context's end."""

    def __init__(self, drafter: PagedDSparkDrafter, context: int) -> None:
        self._drafter, count = drafter, BLOCK_SIZE + 1
        cache, slots = drafter.cache, open_full(drafter.cache, context + 2 * count)
        self._block = pass_at(cache, slots, [context], [drafter.block_rows], causal=False)
        self._end = pass_at(cache, slots, [context - count], [count], causal=False)

    def propose(self, anchor: torch.Tensor, state: "RoundState") -> DraftedBlock:
        """anchor [1]."""
        temperatures = state.filters.temperature
        return self._drafter.draft(anchor, self._block, temperatures, state.seeds, state.lengths)

    def extend(self, taps: torch.Tensor) -> None:
        self._drafter.append(taps, self._end)


@dataclass(frozen=True, slots=True)
class RoundState:
    """What stays on the device between the rounds of one greedy request."""

    filters: Filters
    races: Races
    seeds: torch.Tensor
    lengths: torch.Tensor
    first_rows: torch.Tensor
    num_drafts: torch.Tensor
    uniforms: torch.Tensor

    @classmethod
    def of(cls, device: torch.device, length: int, num_drafts: int = BLOCK_SIZE) -> "RoundState":
        def whole(number: int) -> torch.Tensor:
            return torch.full((1,), number, device=device)

        filters = Filters(
            torch.zeros(1, device=device), whole(0).int(), torch.ones(1, device=device)
        )
        return cls(
            filters=filters,
            races=Races(whole(0).bool(), whole(0)),
            seeds=whole(1),
            lengths=whole(length),
            first_rows=whole(0),
            num_drafts=whole(num_drafts),
            uniforms=torch.rand(1, num_drafts + 1, device=device),
        )

    def accept(self, drafted: DraftedBlock, logits: torch.Tensor) -> AcceptedBlock:
        return accept_block(
            drafted.token_ids, drafted.logits, drafted.log_sums, logits, self.first_rows,
            self.num_drafts, self.filters, self.races, self.uniforms, self.lengths,
        )  # fmt: skip


def by_kernel(run: Callable[[], Any]) -> list[Record]:
    """Time of one pass by kernel, from the profiler; launched one by one, not as a graph."""
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    micro: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type.name == "CUDA":
            micro[event.name] += event.device_time
            calls[event.name] += 1
    return [
        {"kernel": name[:80], "us": total, "calls": calls[name]}
        for name, total in micro.most_common(PROFILED_KERNELS)
    ]
