"""Other tilings of the products and of attention than those in use, at the shapes that run."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any
from unittest.mock import patch

import torch

from dspark_kernels.paged_attention import paged_attention, paged_attention_kernel
from dspark_kernels.skinny_linear import Tiling, skinny_linear
from gpu_parts.setting import Record, Setting, attempt, random_pool, random_weight, rows_at
from gpu_parts.shapes import ModelShape
from gpu_parts.stopwatch import Arm, Stopwatch, against_floor, copies_for

MATRICES = ("qkv", "o", "gate+up", "down")
BLOCKS = (32, 64, 128)
DEPTHS = ((128, 3), (128, 4), (64, 4), (256, 3))  # columns of a step, stages
PROGRAMS = (264, 512, 1024)
STAGES = (2, 3, 4)


def sweep_tilings(setting: Setting) -> Iterator[Record]:
    stopwatch = Stopwatch(setting, trials=7)
    shapes = setting.shapes[:2]
    for shape, name in setting.cases(product(shapes, MATRICES)):
        facts = {"kernel": "skinny linear", "shape": f"{shape.name} {name}"}
        yield attempt(facts, lambda s=shape, n=name: sweep_matrix(setting, stopwatch, s, n))
    for context in (300,) if setting.is_tiny else (512, 32768):
        facts = {"kernel": "attention", "shape": shapes[0].name, "context": context}
        yield attempt(facts, lambda c=context: sweep_attention(setting, stopwatch, shapes[0], c))


def sweep_matrix(setting: Setting, stopwatch: Stopwatch, shape: ModelShape, name: str) -> Record:
    """One row of bf16; `tilings` are sorted by their time."""
    size = shape.layer_matrices()[name]
    first = random_weight("bf16", size, setting.device)
    assert isinstance(first, torch.Tensor)
    weights = [first.clone() for _ in range(copies_for(first.nbytes, setting))]
    x = torch.randn(1, size[1], device=setting.device, dtype=torch.bfloat16)
    is_gated = name == "gate+up"
    num_outputs = size[0] // 2 if is_gated else size[0]
    in_use = Tiling.of(num_outputs, size[1], "dense", size[1], 2)
    tilings = {in_use, *candidates(in_use, num_outputs, size[1], is_tiny=setting.is_tiny)}

    def run(tiling: Tiling) -> Callable[[], None]:
        def call() -> None:
            with patch.object(Tiling, "of", lambda *_: tiling):
                for weight in weights:
                    skinny_linear(x, weight, gated=is_gated)

        return call

    arms = {named(tiling): Arm(run(tiling), len(weights)) for tiling in sorted(tilings, key=named)}
    timings = stopwatch.measure(arms)
    return ranked(timings, first.nbytes, setting) | {"in_use": named(in_use)}


def candidates(in_use: Tiling, num_outputs: int, num_columns: int, *, is_tiny: bool) -> set[Tiling]:
    found = set()
    for block_n, (block_k, stages), programs in product(BLOCKS, DEPTHS, PROGRAMS):
        steps, splits = -(-num_columns // block_k), 1
        while -(-num_outputs // block_n) * splits < programs and steps >= 4 * splits:
            splits *= 2
        found.add(
            replace(in_use, block_n=block_n, block_k=block_k, num_splits=splits, num_stages=stages)
        )
    return set(sorted(found, key=named)[:2]) if is_tiny else found


def named(tiling: Tiling) -> str:
    facts = (tiling.block_n, tiling.block_k, tiling.num_splits, tiling.num_stages)
    return "{} x {}, {} splits, {} stages".format(*facts)


class WithStages:
    """A kernel launched with another number of stages."""

    def __init__(self, kernel: Any, stages: int) -> None:
        self._kernel, self._stages = kernel, stages

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        launch = self._kernel[grid]
        return lambda *args, **kwargs: launch(*args, **{**kwargs, "num_stages": self._stages})


def sweep_attention(
    setting: Setting, stopwatch: Stopwatch, shape: ModelShape, context: int
) -> Record:
    num_bytes = shape.cache_bytes(context, 1)
    num_layers = copies_for(num_bytes, setting)
    pool, slots = random_pool(num_layers, shape, context, setting)
    new = {"device": setting.device, "dtype": torch.bfloat16}
    query = torch.randn(1, shape.num_heads, shape.head_dim, **new)
    rows = rows_at(pool, slots, [context - 1], [1], causal=True)

    def run(stages: int) -> Callable[[], None]:
        staged = WithStages(paged_attention_kernel, stages)

        def call() -> None:
            with patch("dspark_kernels.paged_attention.paged_attention_kernel", staged):
                for layer in range(num_layers):
                    paged_attention(
                        query, *pool.layer(layer), pool.tables, rows, shape.head_dim**-0.5
                    )

        return call

    arms = {f"{stages} stages": Arm(run(stages), num_layers) for stages in STAGES}
    return ranked(stopwatch.measure(arms), num_bytes, setting)


def ranked(timings: dict[str, Record], num_bytes: int, setting: Setting) -> Record:
    """The quickest first; a tiling that does not fit the card has its error."""
    records = [
        {"tiling": name} | against_floor(timing, num_bytes, setting)
        for name, timing in timings.items()
    ]
    return {"tilings": sorted(records, key=lambda record: record.get("us") or float("inf"))}
