"""Turns running out of memory into an error that names a setting that fits."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from dspark.config import GraftConfig
from dspark.engine.machine_errors import is_out_of_memory
from dspark.errors import MemoryFullError
from dspark.plural import counted


@contextmanager
def naming_what_fits(config: GraftConfig, state_path: Path) -> Iterator[None]:
    what = f"a step of {counted(_blocks_at_once(config, config.accumulate), 'block')} at once"
    with _naming(what, lambda: _hint(config, state_path.exists())):
        yield


@contextmanager
def naming_answers_that_fit(answers_at_once: int) -> Iterator[None]:
    """The same while the target writes; fewer at once give the same answers."""
    hint = "Run it with a smaller --max-answer-tokens, --length or base; the answers are kept."
    if answers_at_once > 1:
        half = answers_at_once // 2
        hint = f"Run it again with --answers-at-once {half} to resume."
    with _naming(f"writing {counted(answers_at_once, 'answer')} at once", lambda: hint):
        yield


@contextmanager
def _naming(what: str, hint: Callable[[], str]) -> Iterator[None]:
    """Turns the allocators' errors into MemoryFullError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryFullError(f"out of memory in {what}", hint()) from error


def _hint(config: GraftConfig, has_state: bool) -> str:
    held, num_parts = _blocks_at_once(config, config.accumulate), config.accumulate
    while num_parts < config.batch_size:
        num_parts = min(2 * num_parts, config.batch_size)
        if _blocks_at_once(config, num_parts) < held:
            again = f"Run it again with --accumulate {num_parts}"
            return f"{again}; it resumes from the last checkpoint."
    if held > 1:
        return _another_run(f"--anchors {held // 2}", has_state)
    if config.tap_memory_gib > 0:
        half = config.tap_memory_gib / 2
        fitting = half if half >= 0.25 else 0
        return f"Run it again with --tap-memory {fitting:g}; it resumes from the last checkpoint."
    return "Close other programs, or run it with a smaller --length or base; the answers are kept."


def _blocks_at_once(config: GraftConfig, num_parts: int) -> int:
    of_a_part = math.ceil(config.batch_size / num_parts) * config.anchors
    return min(of_a_part, config.anchors_at_once)


def _another_run(option: str, has_state: bool) -> str:
    """The setting affects the weights, so a checkpoint is only valid for its value."""
    if not has_state:
        return f"Run it again with {option}; the answers are kept, no step was saved yet."
    return (
        f"Run it again with {option} --no-resume: the answers are kept, training starts over, as "
        "the checkpoint is of the old setting (--init-from OUT --out NEW starts from its head)."
    )


def bytes_in_use() -> int:
    """The peak on the GPU if one is used, else the process's memory."""
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return peak or psutil.Process().memory_info().rss
