"""Layers of one launch each against the chain of kernels: the same bits, and how long."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any
from unittest.mock import patch

import torch

from dspark.models import decoder
from dspark.targets.dense import DenseTarget
from gpu_parts.models import open_full, pass_at, random_target
from gpu_parts.setting import Record, Setting, attempt
from gpu_parts.shapes import ModelShape
from gpu_parts.stopwatch import Arm, Stopwatch

LAYERS = 9  # the first one starts with the embedding, and is always a chain
ROWS = (1, 8)
KINDS = ("bf16", "int4")
ARMS = {"kernels": "off", "one launch": "on"}


def time_persistent(setting: Setting) -> Iterator[Record]:
    stopwatch = Stopwatch(setting)
    for kind, shape in setting.cases(
        product(KINDS[: 1 if setting.is_tiny else None], setting.shapes[:2])
    ):
        targets: list[DenseTarget] = []
        for rows in ROWS[-1:] if setting.is_tiny else ROWS:
            facts = {"shape": shape.name, "kind": kind, "rows": rows}
            given = (setting, stopwatch, shape, kind, rows, targets)
            yield attempt(facts, lambda g=given: compare(*g))


def compare(
    setting: Setting,
    stopwatch: Stopwatch,
    shape: ModelShape,
    kind: str,
    rows: int,
    kept: list[DenseTarget],
) -> Record:
    """`us_saved` is that of a layer. `kept` holds the target for the next number of rows."""
    if not kept:
        layers = 3 if setting.is_tiny else LAYERS
        kept.append(random_target(replace(shape, num_layers=layers, num_taps=1), setting, kind))
    target, context = kept[0], setting.contexts[0]
    where = pass_at(
        target.cache, open_full(target.cache, context + rows), [context], [rows], causal=True
    )
    ids = torch.arange(rows, device=setting.device)
    num_whole = target.cache.shape.num_layers - 1
    counts: list[bool] = []
    whole = decoder.persistent_layer

    def counted(*args: Any) -> Any:
        result = whole(*args)
        counts.append(result is not None)
        return result

    def arm(switch: str) -> Callable[[], Any]:
        def run() -> Any:
            with (
                patch.dict(os.environ, {"DSPARK_PERSISTENT": switch}),
                patch.object(decoder, "persistent_layer", counted),
            ):
                return target.run(ids, where)

        return run

    runs = {name: arm(switch) for name, switch in ARMS.items()}
    passes = [run() for run in runs.values()]
    if sum(counts) != num_whole:
        return {"skipped": "a layer of this kind is not one launch on this device"}
    is_same = torch.equal(passes[0].logits, passes[1].logits)
    is_same &= torch.equal(passes[0].taps, passes[1].taps)
    timings = stopwatch.measure({name: Arm(run) for name, run in runs.items()})
    record: Record = {"times": timings, "same_bits": is_same}
    times = [timings[name].get("us") for name in ARMS]
    if all(times):
        record["us_saved"] = (times[0] - times[1]) / num_whole
    failed = any("error" in timing for timing in timings.values())
    return record | {"ok": is_same and not failed}
