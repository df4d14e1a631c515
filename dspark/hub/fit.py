"""Does a model fit? What it needs, from headers alone, against what is free."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark.errors import MemoryFullError
from dspark.hub.folders import count_parameters, read_config
from dspark.hub.pairs import HubRepo, Pair
from dspark.hub.store import locate

USABLE = 0.9  # of a memory; the system and other programs need the rest
CACHE_TOKENS = 4096  # a long chat; the cache grows with the context
BFLOAT16_BYTES = 2
NATIVE_FP8_CAPABILITY = (8, 9)  # below it, and on a CPU, transformers de-quantises to bfloat16


@dataclass(frozen=True, slots=True)
class Fit:
    """Bytes needed and free in one kind of memory."""

    needed: int
    free: int

    @property
    def is_enough(self) -> bool:
        return self.needed <= self.free


def folder_memory(target: Path, draft: Path | None, value_bytes: int) -> int:
    """Weights of target and head, and the cache of a long chat, at `value_bytes` a number."""
    values = count_parameters(target) + cache_values(read_config(target)) * CACHE_TOKENS
    if draft is not None:
        values += count_parameters(draft)
    return values * value_bytes


def cache_values(config: dict[str, Any]) -> int:
    """Numbers that one token leaves in the cache; 0 for a config without the usual keys."""
    config = config.get("text_config", config)
    try:
        num_heads = config["num_attention_heads"]
        num_kv_heads = config.get("num_key_value_heads") or num_heads
        head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
        return 2 * int(config["num_hidden_layers"]) * int(num_kv_heads) * int(head_dim)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return 0


def free_memory(device: str) -> int:
    """Free bytes of the GPU that `device` names, otherwise of the machine."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    import psutil

    return int(psutil.virtual_memory().available)


@dataclass(frozen=True, slots=True)
class Room:
    """All the memory of one device, and the bytes that a number takes there by default.

    `runs_packed`: FP8 weights stay as they are stored; elsewhere they are loaded as bfloat16.
    """

    device: str
    total: int
    value_bytes: int
    runs_packed: bool = False

    @property
    def usable(self) -> int:
        return int(self.total * USABLE)


def rooms() -> list[Room]:
    """What dspark can load a pair into, the default device first."""
    import psutil

    found = [Room("cpu", int(psutil.virtual_memory().total), 4)]
    import torch

    if torch.cuda.is_available():
        packed = torch.cuda.get_device_capability() >= NATIVE_FP8_CAPABILITY
        found.insert(0, Room("cuda", int(torch.cuda.mem_get_info()[1]), 2, packed))
    return found


def weights_needed(pair: Pair, value_bytes: int = 2, *, is_packed: bool = True) -> int | None:
    """Bytes of target and head in memory, by the registry; None is not established.

    The head of a target that brings its own is among the target's bytes, which are packed.
    """
    if pair.target_num_bytes is None:
        return None
    if brings_own_head(pair):
        unpacked = (pair.num_parameters or pair.target_num_bytes) * BFLOAT16_BYTES
        return pair.target_num_bytes if is_packed else unpacked
    values = pair.num_parameters or pair.target_num_bytes // 2
    if pair.head is not None:
        head_bytes = pair.draft.num_bytes if isinstance(pair.draft, HubRepo) else None
        values += pair.head.num_parameters or (head_bytes or 0) // 2
    return values * value_bytes


def brings_own_head(pair: Pair) -> bool:
    return isinstance(pair.draft, HubRepo) and pair.draft.tensor_prefix is not None


def check_memory(pair: Pair) -> None:
    """Raises MemoryFullError where no device of this machine could ever hold the pair."""
    packed, unpacked = weights_needed(pair), weights_needed(pair, is_packed=False)
    if packed is None or unpacked is None:
        return
    if unpacked <= _machine_usable():  # the usual case needs no torch
        return
    found = rooms()
    if any((packed if room.runs_packed else unpacked) <= room.usable for room in found):
        return
    there = ", ".join(f"{gigabytes(room.total)} ({room.device})" for room in found)
    needed = f"{gigabytes(packed)} of memory for its weights alone"
    if packed != unpacked:
        needed += f" on a GPU with FP8, {gigabytes(unpacked)} elsewhere"
    raise MemoryFullError(f"{pair.name} needs {needed}; there is {there}", ways_out(pair))


def _machine_usable() -> int:
    import psutil

    return int(psutil.virtual_memory().total * USABLE)


def ways_out(pair: Pair) -> str:
    """What to do about a pair that does not fit."""
    ways = ["Take a smaller pair (dspark list shows what each needs)"]
    if _has_other_engine(pair):
        ways.append(
            f"or on GPUs that hold it: dspark serve {pair.name} --engine vllm, "
            "then dspark chat --server URL"
        )
    return f"{'; '.join(ways)}; dspark pull {pair.name} --force fetches it all the same."


def _has_other_engine(pair: Pair) -> bool:
    """vLLM runs released DSpark heads; of others that is not established."""
    head = pair.head
    is_known = head is not None and head.algorithm == "dspark" and head.block_size is not None
    return is_known and isinstance(pair.target, HubRepo) and isinstance(pair.draft, HubRepo)


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"


def pair_fit(pair: Pair, device: str, dtype: str) -> Fit:
    """Exact once the pair is in the store; the target's weights alone before."""
    value_bytes = 4 if dtype == "float32" else 2
    files = locate(pair.name)
    if files is None or brings_own_head(pair):
        packed = device.startswith("cuda") and rooms()[0].runs_packed
        return Fit(weights_needed(pair, value_bytes, is_packed=packed) or 0, free_memory(device))
    return Fit(folder_memory(files.target, files.draft, value_bytes), free_memory(device))
