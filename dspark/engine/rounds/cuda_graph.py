"""CUDA graphs of functions over static tensors, and a clock; plain calls on other devices."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from dspark.errors import CaptureError, DSparkError, reason_of

Result = TypeVar("Result")


class GraphPool:
    """The memory that all graphs of a device share. After a failed capture PyTorch takes it for one
    that is still recording, so nothing more is captured into it."""

    def __init__(self) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        self.failure: CaptureError | None = None


class GraphedCall(Generic[Result]):
    """A function that is captured at its first call and replayed from then on.

    Its result stays at the address of the capture. `state` are the tensors that it changes: they
    are restored after the run that compiles its kernels.
    """

    def __init__(
        self,
        function: Callable[[], Result],
        state: Sequence[torch.Tensor],
        pool: GraphPool | None,
    ) -> None:
        self._function, self._state, self._pool = function, state, pool
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Result | None = None

    def __call__(self) -> Result:
        if self._pool is None:
            return self._function()
        if self._graph is None or self._result is None:
            self._graph, self._result = self._captured(self._pool)
        self._graph.replay()
        return self._result

    def _captured(self, pool: GraphPool) -> tuple[torch.cuda.CUDAGraph, Result]:
        """Raises CaptureError."""
        if pool.failure is not None:
            raise pool.failure
        try:
            return self._capture(pool)
        except (torch.OutOfMemoryError, DSparkError):
            raise
        except Exception as error:  # those of Triton have no class in common
            pool.failure = CaptureError(
                f"a round could not be captured as a CUDA graph ({reason_of(error)})",
                "DSPARK_GRAPHS=off runs it uncaptured, DSPARK_KERNELS=torch without our kernels.",
            )
            raise pool.failure from error

    def _capture(self, pool: GraphPool) -> tuple[torch.cuda.CUDAGraph, Result]:
        saved = [tensor.clone() for tensor in self._state]
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            self._function()
        side.synchronize()
        for tensor, before in zip(self._state, saved, strict=True):
            tensor.copy_(before)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # what other threads do with CUDA meanwhile is no error of ours
        with torch.cuda.graph(graph, pool=pool.handle, capture_error_mode="thread_local"):
            result = self._function()
        return graph, result


def graph_pool(device: torch.device) -> GraphPool | None:
    """None without graphs."""
    if device.type != "cuda" or os.environ.get("DSPARK_GRAPHS") == "off":
        return None
    return GraphPool()


def pinned_like(tensor: torch.Tensor) -> torch.Tensor:
    """Page-locked memory of the host, to which a device copies while the host does other work."""
    return torch.empty_like(tensor, device="cpu", pin_memory=True)


class Moment:
    """A point in the device's work queue, which the device need not have reached yet."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record()
        self._time = time.perf_counter()

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def since(self, earlier: "Moment") -> float:
        """Seconds."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        return float(earlier._event.elapsed_time(self._event)) / 1000
