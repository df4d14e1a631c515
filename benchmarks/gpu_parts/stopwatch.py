"""Times on the device: graphs replayed in turns, the L2 flushed before each, medians of the trials.

On the CPU every arm runs once and no time is claimed.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gpu_parts.setting import Record, Setting, told

FLUSH_BYTES = 1 << 30  # many times any L2, and long enough to hide the next launch
ROTATED_BYTES = 512 << 20  # of weights that take turns within a graph, so that all come from memory
WARM_UP_REPLAYS = 2


@dataclass(frozen=True, slots=True)
class Arm:
    """`run` makes the same call `calls` times, on inputs that take turns."""

    run: Callable[[], Any]
    calls: int = 1


class Stopwatch:
    def __init__(self, setting: Setting, trials: int = 15) -> None:
        self._setting = setting
        self._trials = trials
        self._is_cuda = setting.device.type == "cuda"
        if self._is_cuda:
            self._flushed = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=setting.device)

    def measure(self, arms: Mapping[str, Arm], *, as_graph: bool = True) -> dict[str, Record]:
        """Microseconds of one call of each arm. An arm that fails gives its error."""
        results: dict[str, Record] = {}
        replays: dict[str, Callable[[], Any]] = {}
        for name, arm in arms.items():
            try:
                replays[name] = captured(arm.run, self._setting.device) if as_graph else arm.run
                if not self._is_cuda:
                    arm.run()
            except Exception as error:
                results[name] = {"error": told(error)}
        if not self._is_cuda:
            return results | {name: {"us": None} for name in replays if name not in results}
        samples = self._samples(replays)
        for name, times in samples.items():
            micro = [each * 1e3 / arms[name].calls for each in times]
            results[name] = {
                "us": statistics.median(micro), "low": min(micro), "high": max(micro),
            }  # fmt: skip
        return results

    def _samples(self, replays: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Milliseconds of every trial; who goes first moves on with each."""
        for replay in replays.values():
            for _ in range(WARM_UP_REPLAYS):
                replay()
        names = list(replays)
        events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in names}
        for trial in range(self._trials):
            first = trial % max(len(names), 1)
            for name in names[first:] + names[:first]:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                for _ in range(2):
                    self._flushed.fill_(trial)
                begin.record()
                replays[name]()
                end.record()
                events[name].append((begin, end))
        torch.cuda.synchronize()
        return {n: [begin.elapsed_time(end) for begin, end in pairs] for n, pairs in events.items()}


def captured(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """run() as a CUDA graph, which gives the same tensors, filled anew; on the CPU run itself."""
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiled and loaded before the capture
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay() -> Any:
        graph.replay()
        return results

    return replay


def copies_for(num_bytes: int, setting: Setting) -> int:
    """How many inputs of this size have to take turns."""
    return 1 if setting.is_tiny else max(1, -(-ROTATED_BYTES // num_bytes))


def against_floor(timing: Record, num_bytes: int, setting: Setting) -> Record:
    """A time with its floor; `of_bandwidth` is the share of the copy bandwidth that is reached."""
    floor = setting.floor_us(num_bytes)
    record = timing | {"bytes": num_bytes, "floor_us": floor}
    if floor is not None and timing.get("us"):
        record["of_bandwidth"] = floor / timing["us"]
    return record
