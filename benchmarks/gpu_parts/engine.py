"""The engine itself over random weights in a model's shape: what a round takes by the wall clock.

The device's own time stands beside it: if both agree, launching ahead hides the host.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch

from dspark.config import DraftWeights, EngineConfig, SamplingConfig, StopConfig
from dspark.engine.loop import Engine
from dspark.engine.request import Request
from dspark.engine.schedule.policies import FullSchedule
from dspark.events import PrefillProgress, Round
from gpu_parts.models import random_drafter, random_target
from gpu_parts.rounds import made_room
from gpu_parts.setting import Record, Setting, attempt
from gpu_parts.shapes import ModelShape

WAYS: dict[str, dict[str, Any]] = {
    "plain": {"plain": True},
    "drafts": {},
    "drafts, sampled": {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
}
NEW_TOKENS = 128
FIRST_ROUNDS = 8  # left out: a new number of pages is captured in one of them
DRAFTS: tuple[DraftWeights, ...] = ("auto", "int8")


def time_engine(setting: Setting) -> Iterator[Record]:
    arms = [(shape, DRAFTS[0]) for shape in setting.shapes]
    arms += [] if setting.is_tiny else [(setting.shapes[0], weights) for weights in DRAFTS[1:]]
    for shape, weights in setting.cases(arms):
        facts: Record = {"shape": shape.name, "draft_weights": weights}
        found = attempt(facts, lambda s=shape: made_room(s, setting))
        if "skipped" in found or "error" in found:
            yield found
            continue
        yield from time_shape(setting, shape, weights, facts)


def time_shape(
    setting: Setting, shape: ModelShape, weights: DraftWeights, facts: Record
) -> Iterator[Record]:
    engines: list[Engine] = []
    yield attempt(facts, lambda: open_engine(setting, shape, weights, engines))
    if not engines:
        return
    lengths, tokens = ((40,), 4) if setting.is_tiny else ((512, 4096), NEW_TOKENS)
    for length in lengths:
        prompt = tuple(7 * index % (shape.vocab_size - 1) for index in range(length))
        for way, options in WAYS.items():
            if setting.is_tiny and way != "drafts":
                continue
            request = asked(prompt, tokens, **options)
            record = attempt(
                facts | {"way": way, "context": length},
                lambda r=request: time_request(setting, engines[0], r),
            )
            yield against(record, shape, setting)


def open_engine(
    setting: Setting, shape: ModelShape, weights: DraftWeights, engines: list[Engine]
) -> Record:
    started = time.perf_counter()
    target = random_target(shape, setting)
    drafter = random_drafter(shape, target, setting, weights)
    built = time.perf_counter()
    config = EngineConfig(max_requests=1 if setting.is_tiny else 8)
    engine = Engine(target, drafter, FullSchedule(), config=config)
    warmed = [] if setting.is_tiny else list(engine.warm_up())
    record: Record = {
        "rounds": type(engine._rounds).__name__,
        "built_s": built - started,
        "warm_up_s": time.perf_counter() - built,
        "shapes_prepared": len(warmed),
    }
    if (cache := target.paged_cache()) is not None:
        record["pages"] = cache.pool.num_pages
    if setting.device.type == "cuda":
        record["allocated_gib"] = torch.cuda.memory_allocated() / 2**30
        record["reserved_gib"] = torch.cuda.memory_reserved() / 2**30
    engines.append(engine)
    return record


def asked(prompt: tuple[int, ...], tokens: int, plain: bool = False, **sampling: Any) -> Request:
    return Request(prompt, SamplingConfig(**sampling), StopConfig(max_tokens=tokens), plain)


def time_request(setting: Setting, engine: Engine, request: Request) -> Record:
    """The second of two runs: the first captures."""
    if not setting.is_tiny:
        list(engine.run([request]))
    begun = time.perf_counter()
    prefilled, rounds, times = begun, [], []
    for event in engine.run([request]):
        if isinstance(event, PrefillProgress):
            prefilled = time.perf_counter()
        if isinstance(event, Round):
            rounds.append(event)
            times.append(time.perf_counter())
    if setting.is_tiny:
        return {"num_rounds": len(rounds), "ok": bool(rounds)}
    steady, times = rounds[FIRST_ROUNDS:], times[FIRST_ROUNDS:]
    count = len(steady)
    return {
        "prefill_tokens_per_second": len(request.prompt_ids) / (prefilled - begun),
        "wall_ms": 1e3 * (times[-1] - times[0]) / (count - 1),
        "device_ms": 1e3 * sum(each.seconds for each in steady) / count,
        "draft_ms": 1e3 * sum(each.draft_seconds for each in steady) / count,
        "num_rounds": len(rounds),
    }


def against(record: Record, shape: ModelShape, setting: Setting) -> Record:
    """With the floor that the bytes set, once the bandwidth is known."""
    is_plain = record["way"] == "plain"
    sizes = shape.step_bytes if is_plain else shape.round_bytes
    floor = setting.floor_us(sizes(record["context"]))
    if floor is None or "wall_ms" not in record:
        return record
    floors = {"floor_ms": floor / 1e3, "over_floor": record["wall_ms"] / (floor / 1e3)}
    return record | floors
