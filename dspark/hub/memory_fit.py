"""Does a pair fit? The memory it needs on its device, against the memory available."""

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from dspark.config import RuntimeConfig
from dspark.errors import CheckpointError, MemoryFullError
from dspark.hub.catalog.pairs import HubRepo, Pair
from dspark.hub.footprint import FLOAT, Footprint, brings_own_head, of_folders, of_pair
from dspark.hub.machine_spec import MachineSpec
from dspark.hub.memory_needed import Room, is_mapped, least_memory, memory_needed
from dspark.hub.store import locate
from dspark.machine import free_memory, gigabytes, total_memory

HALF = 2  # bytes of a number in bfloat16
NATIVE_FP8_CAPABILITY = (8, 9)  # below this, and on a CPU, transformers de-quantises to bfloat16
# of drivers; without them torch need not be imported
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


@dataclass(frozen=True, slots=True)
class Fit:
    """Bytes needed and free in one kind of memory."""

    needed: int
    free: int

    @property
    def is_enough(self) -> bool:
        return self.needed <= self.free


def rooms() -> list[Room]:
    """The devices a pair can be loaded on, the default first, in their default number format."""
    devices = [Room("cpu", total_memory("cpu"), FLOAT, keeps_codes=_has_cpu_kernels())]
    if os.name != "nt" and not any(Path(name).exists() for name in GPU_FILES):
        return devices
    import torch

    if torch.cuda.is_available():
        packed = torch.cuda.get_device_capability() >= NATIVE_FP8_CAPABILITY
        has_kernels = find_spec("triton") is not None
        devices.insert(0, Room("cuda", total_memory("cuda"), HALF, packed, has_kernels))
    return devices


def this_machine() -> MachineSpec:
    """Its sizes; its speeds are not measured."""
    held = {room.device: room.total for room in rooms()}
    return MachineSpec(held["cpu"], gpu=held.get("cuda", 0))


def _has_cpu_kernels() -> bool:
    """A guess without torch: only the kernels know whether they can be built."""
    return os.environ.get("DSPARK_KERNELS") != "torch" and find_spec("llvmlite") is not None


def room_for(runtime: RuntimeConfig, found: list[Room]) -> Room:
    """The device on which the pair would run, with the number format used there."""
    device = runtime.device.partition(":")[0]
    room = next((each for each in found if each.device == device), found[0])
    if room.device == device != runtime.device:  # a certain one of several
        room = replace(room, total=total_memory(runtime.device))
    room = replace(room, codes_cache=runtime.kv != "auto")
    if runtime.dtype == "auto":
        return room
    return _in_numbers(room, _bytes(runtime.dtype))


def _in_numbers(room: Room, value_bytes: int) -> Room:
    """On a CPU codes are no choice then; on a GPU layers keep them beside any format."""
    keeps_codes = room.keeps_codes and room.device == "cuda"
    return replace(room, value_bytes=value_bytes, keeps_codes=keeps_codes)


def _bytes(dtype: str) -> int:
    return FLOAT if dtype == "float32" else HALF


def settings(found: list[Room], of: Footprint | None = None) -> list[tuple[Room, str]]:
    """The default device and number format first; then, with the options that select them, where
    `of` runs as it is stored, and two bytes per number wherever that fits."""
    mapped = [
        (room, f"--device {room.device}")
        for room in found[1:]
        if of is not None and is_mapped(of, room)
    ]
    halves = [_in_numbers(room, HALF) for room in found]
    asked = [f"--device {room.device} --dtype bfloat16" for room in found]
    return [(found[0], ""), *mapped, *zip(halves, asked, strict=True)]


def pair_footprint(pair: Pair) -> Footprint | None:
    """Exact once the pair is in the store, from the catalogue before; None is not established."""
    files = locate(pair.name)
    if files is None or brings_own_head(pair):
        return of_pair(pair)
    try:
        return of_folders(files.target, files.draft)
    except CheckpointError:  # broken files, which loading will report
        return of_pair(pair)


def pair_memory(pair: Pair, room: Room | None = None) -> int | None:
    """Bytes that the pair needs on its default device; None is not established."""
    of = pair_footprint(pair)
    return None if of is None else memory_needed(of, room or rooms()[0])


def pair_fit(pair: Pair, device: str) -> Fit:
    """The need on that device by default, against its free memory."""
    room = room_for(RuntimeConfig(device), rooms())
    return Fit(pair_memory(pair, room) or 0, free_memory(device))


def check_memory(pair: Pair, runtime: RuntimeConfig | None = None) -> None:
    """Raises MemoryFullError if the pair cannot run on `runtime`; None: on any device here. What
    was fetched all the same may leave its experts on the SSD."""
    if (of := pair_footprint(pair)) is None:
        return
    if runtime is not None and locate(pair.name) is not None:
        room = room_for(runtime, rooms())
        if least_memory(of, room) <= room.usable:
            return
    check_room(of, pair.name, runtime, _other_ways(pair, of))


def check_room(of: Footprint, name: str, runtime: RuntimeConfig | None, other_ways: str) -> None:
    """Raises MemoryFullError with alternatives: options with which it fits, then others."""
    devices = rooms()
    possible = [each for each, _ in settings(devices, of)]
    asked = possible if runtime is None else [room_for(runtime, devices)]
    if any(memory_needed(of, room) <= room.usable for room in asked):
        return
    needed = " or ".join(dict.fromkeys(_told(of, room) for room in asked))
    there = ", ".join(f"{gigabytes(room.total)} ({room.device})" for room in devices)
    fitting = [options for room, options in settings(devices, of) if _fits(of, room) and options]
    first = f"It fits with {fitting[0]}; {other_ways}" if fitting else other_ways
    raise MemoryFullError(
        f"{name} needs {needed} of memory; there is {there}", first[:1].upper() + first[1:]
    )


def check_loadable(name: str, of: Footprint, runtime: RuntimeConfig) -> None:
    """Raises MemoryFullError if a pair on disk needs more than all memory of its device."""
    room = room_for(runtime, rooms())
    if least_memory(of, room) > room.total:
        check_room(of, name, runtime, "use a smaller model, or fewer bits.")


def _told(of: Footprint, room: Room) -> str:
    how = number_format(of, room)
    return f"{gigabytes(memory_needed(of, room))} ({room.device}, {how})"


def number_format(of: Footprint | None, room: Room) -> str:
    """The form in which the weights are held there; the room's own for a pair of unknown size."""
    if of is not None and of.stored_bytes is not None:
        if is_mapped(of, room):
            return "as stored"
        return "FP8" if room.keeps_quantized else "FP8 unpacked"
    if of is not None and room.keeps_codes:
        coded = of.gpu_coded_values if room.device == "cuda" else of.coded_values
        if coded:
            return "as stored"
    return room.dtype


def _fits(of: Footprint, room: Room) -> bool:
    return memory_needed(of, room) <= room.usable


def _other_ways(pair: Pair, of: Footprint) -> str:
    ways = ["use a smaller pair (dspark list shows the memory of each)"]
    if _has_other_engine(pair):
        ways.append(
            f"or on GPUs that hold it: dspark serve {pair.name} --engine vllm, "
            "then dspark chat --server URL"
        )
    if of.experts is not None:
        ways.append(
            f"dspark chat {pair.name} --what-if gpu=24,ram=256 tells what another machine would do"
        )
    anyway = f"dspark pull {pair.name} --force fetches it anyway"
    if least_memory(of, rooms()[-1]) <= rooms()[-1].usable and of.runs_mapped:
        anyway += ", and experts that memory does not hold are read from the SSD, slowly"
    return f"{'; '.join(ways)}; {anyway}."


def _has_other_engine(pair: Pair) -> bool:
    """vLLM runs released DSpark heads; for others that is not established."""
    head = pair.head
    is_known = head is not None and head.algorithm == "dspark" and head.block_size is not None
    return is_known and isinstance(pair.target, HubRepo) and isinstance(pair.draft, HubRepo)
