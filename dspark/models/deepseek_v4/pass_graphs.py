"""Passes of DeepSeek-V4 as CUDA graphs: run once, captured when they come again, then replayed.

A first run compiles kernels and makes memory, and is a pass like any other, so nothing has to be
undone. DSPARK_GRAPHS=off turns graphs off.
"""

import os
from collections.abc import Callable, Hashable

import torch

from dspark.errors import CaptureError, reason_of

MOST_GRAPHS = 32

Replay = Callable[[], torch.Tensor]
Capture = Callable[[Replay], Replay]


class PassGraphs:
    """Functions over static tensors; `capture` None for a device without graphs."""

    def __init__(self, capture: Capture | None) -> None:
        self._capture = capture
        self._seen: set[Hashable] = set()
        self._replays: dict[Hashable, Replay] = {}

    def run(self, key: Hashable | None, function: Replay) -> torch.Tensor:
        """`key` stands for all addresses and sizes that the function hands to kernels, None if it
        cannot be captured. A replay gives the same tensor as the one before, filled anew. Raises
        CaptureError."""
        if self._capture is None or key is None:
            return function()
        if key not in self._seen:
            self._seen.add(key)
            return function()
        if key not in self._replays:
            if len(self._replays) == MOST_GRAPHS:  # texts have grown: the first are the least used
                self._forget(next(iter(self._replays)))
            self._replays[key] = self._capture(function)
        return self._replays[key]()

    def _forget(self, key: Hashable) -> None:
        del self._replays[key]
        self._seen.discard(key)


class GraphCapture:
    """All graphs of a card share their memory: one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._failure: CaptureError | None = None

    def __call__(self, function: Replay) -> Replay:
        """Raises CaptureError; after a first one, at once."""
        if self._failure is not None:
            raise self._failure
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            # what other threads do with CUDA meanwhile is no error of ours
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = function()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # those of Triton have no class in common
            self._failure = CaptureError(
                f"a pass could not be captured as a CUDA graph ({reason_of(error)})",
                "DSPARK_GRAPHS=off runs it uncaptured.",
            )
            raise self._failure from error

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay


def pass_graphs(device: torch.device) -> PassGraphs:
    is_on = device.type == "cuda" and os.environ.get("DSPARK_GRAPHS") != "off"
    return PassGraphs(GraphCapture() if is_on else None)
