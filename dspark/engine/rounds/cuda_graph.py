"""CUDA graphs of functions over static tensors, and a clock; plain calls on other devices."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch

from dspark.errors import DSparkError

Result = TypeVar("Result")


class GraphedCall(Generic[Result]):
    """A function that is captured at its first call and replayed from then on.

    Its result stays at the address of the capture. `state` are the tensors that it changes: they
    are restored after the run that compiles its kernels.
    """

    def __init__(
        self, function: Callable[[], Result], state: Sequence[torch.Tensor], pool: Any
    ) -> None:
        self._function, self._state, self._pool = function, state, pool
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Result | None = None

    def __call__(self) -> Result:
        if self._pool is None:
            return self._function()
        if self._graph is None or self._result is None:
            self._graph, self._result = self._captured()
        self._graph.replay()
        return self._result

    def _captured(self) -> tuple[torch.cuda.CUDAGraph, Result]:
        try:
            return self._capture()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise DSparkError(
                f"a round could not be captured as a CUDA graph ({str(error).splitlines()[0]})",
                "DSPARK_GRAPHS=off runs it uncaptured, DSPARK_KERNELS=torch without our kernels.",
            ) from error

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, Result]:
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
        with torch.cuda.graph(graph, pool=self._pool):
            result = self._function()
        return graph, result


def graph_pool(device: torch.device) -> Any:
    """The memory pool that all graphs of a device share; None without graphs."""
    if device.type != "cuda" or os.environ.get("DSPARK_GRAPHS") == "off":
        return None
    return torch.cuda.graph_pool_handle()


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
