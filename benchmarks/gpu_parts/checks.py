"""Every kernel against float64 at the shapes that run, and bit for bit against itself in a batch.

A row's result may depend neither on how many rows a pass has nor on how many requests.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from gpu_parts.check_attention import check_attention
from gpu_parts.check_head import check_head
from gpu_parts.check_layer import (
    check_embedded_blocks,
    check_norm,
    check_norm_rope_write,
    check_skinny,
    check_swiglu,
)
from gpu_parts.check_outcome import check_accept, check_round_state, check_terms
from gpu_parts.setting import KINDS, OF_GGUF, Record, Setting, attempt

DTYPES = (torch.bfloat16, torch.float32)


def check_kernels(setting: Setting) -> Iterator[Record]:
    yield from run_cases(setting, cases(setting))


def check_each_once(setting: Setting) -> Iterator[Record]:
    """Every kernel at one shape that runs: those that fail are replaced in what follows."""
    every = [case for case in cases(setting) if is_first(case[0], setting)]
    yield from run_cases(setting, every)


def is_first(facts: Record, setting: Setting) -> bool:
    return (
        facts["dtype"] == "bfloat16"
        and facts["shape"] in (setting.shapes[0].name, f"{setting.shapes[0].name} qkv")
        and facts.get("context", setting.contexts[0]) == setting.contexts[0]
    )


def run_cases(
    setting: Setting, every: Iterable[tuple[Record, Callable[[], Record]]]
) -> Iterator[Record]:
    for facts, run in setting.cases(every):
        torch.manual_seed(setting.progress.case)
        with poisoned():
            record = attempt(facts, run)
        yield record
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def poisoned() -> Iterator[None]:
    """Elements that a kernel does not write stay NaN, or a number that no check expects."""

    def poison(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def make_poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
            fresh = make(*args, **kwargs)
            return fresh.fill_(float("nan") if fresh.is_floating_point() else 99)

        return make_poisoned

    with (
        patch.object(torch, "empty", poison(torch.empty)),
        patch.object(torch, "empty_like", poison(torch.empty_like)),
        patch.object(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty)),
    ):
        yield


def cases(setting: Setting) -> Iterator[tuple[Record, Callable[[], Record]]]:
    """Names and checks. The slow ones come first, for workers that share them."""
    for shape in setting.shapes:
        for name, size in shape.matrices().items():
            for kind in (*KINDS, *OF_GGUF):
                for dtype in DTYPES:
                    # float32 and a GGUF's codes are rare: one shape of each shows the path
                    is_rare = dtype == torch.float32 or kind in OF_GGUF
                    if is_rare and (shape, name) != (setting.shapes[0], "qkv"):
                        continue
                    facts = {"kernel": "skinny linear", "shape": f"{shape.name} {name}"}
                    facts |= {"kind": kind, "dtype": str(dtype).removeprefix("torch.")}
                    is_gated = name == "gate+up"
                    yield (
                        facts,
                        lambda k=kind, s=size, d=dtype, g=is_gated: check_skinny(
                            setting, k, s, d, g
                        ),
                    )
    for shape in setting.shapes:
        for dtype in DTYPES:
            facts = {"shape": shape.name, "dtype": str(dtype).removeprefix("torch.")}
            for context in setting.contexts if setting.is_tiny else (512, 8192, 32768):
                for causal in (True, False):
                    kernel = "attention" if causal else "attention of a block"
                    yield (
                        facts | {"kernel": kernel, "context": context},
                        lambda s=shape, d=dtype, c=context, a=causal: check_attention(
                            setting, s, d, c, a
                        ),
                    )
            for kernel, check in (
                ("norm", check_norm),
                ("embedded blocks", check_embedded_blocks),
                ("norm, rope, write", check_norm_rope_write),
                ("swiglu", check_swiglu),
            ):
                yield facts | {"kernel": kernel}, lambda f=check, s=shape, d=dtype: f(setting, s, d)
    shape = setting.shapes[0]
    for dtype in DTYPES:
        facts = {"shape": shape.name, "dtype": str(dtype).removeprefix("torch.")}
        for kind in ("none", "vanilla", "gated", "rnn"):
            yield (
                facts | {"kernel": f"sequential head {kind}"},
                lambda k=kind, d=dtype: check_head(setting, shape, d, k),
            )
        for kernel, check in (
            ("accept", check_accept),
            ("round state", check_round_state),
            ("loss terms", check_terms),
        ):
            yield facts | {"kernel": kernel}, lambda f=check, d=dtype: f(setting, shape, d)
