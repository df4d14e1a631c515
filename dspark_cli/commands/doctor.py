"""`dspark doctor`: environment, devices, and pairs that fit. Runs whatever is missing."""

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dspark_cli import options
from dspark_cli.output.facts import print_json, size_or_unknown, size_text
from dspark_cli.output.tables import Column, print_facts, print_table

if TYPE_CHECKING:
    from dspark.engine.schedule.sps_profile import SpsTable

EXAMPLES = ("dspark doctor", "dspark doctor --json > doctor.json")
PROBLEM = "problem"
ON_DISK_ONLY = "known once on disk"
NEXT = "Next: dspark chat talks to the demo."
PAIR_COLUMNS = (
    Column("  PAIR"),
    Column("FITS NOW"),
    Column("ON DISK"),
    Column("MEMORY", is_right=True),
    Column("DISK NEEDED", is_right=True, rank=1),
    Column("ROOM FOR TEXT", is_right=True, rank=2),
)


def doctor(as_json: options.Json = False) -> None:
    """Show the environment, the devices, the local store and which pairs fit."""
    report = {name: _examine(section) for name, section in SECTIONS.items()}
    if as_json:
        print_json(report)
        return
    for name, facts in report.items():
        if not facts:
            continue
        print(_label(name))
        if name == "pairs" and PROBLEM not in facts:
            print_table(PAIR_COLUMNS, [_pair_row(*each) for each in facts.items()])
        else:
            print_facts({_label(key): _text(key, value) for key, value in facts.items()})
    print(f"\n{NEXT}")


def _pair_row(name: str, facts: dict[str, Any]) -> tuple[str, ...]:
    tokens = facts.get("tokens_beside_weights")
    return (
        f"  {name}",
        _mark(facts["fits"]),
        _mark(facts["in_store"]),
        size_or_unknown(facts["memory_bytes"]),
        size_or_unknown(facts["disk_still_needed_bytes"]),
        ON_DISK_ONLY if tokens is None else f"{tokens:,} tokens",
    )


def _mark(is_so: bool | None) -> str:
    return "unknown" if is_so is None else "✓" if is_so else "✗"


def _examine(section: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return section()
    except Exception as error:  # this command must work on a broken machine
        reason = " ".join(str(error).split())
        return {PROBLEM: f"{type(error).__name__}: {reason}"}


def _label(key: str) -> str:
    return key.removesuffix("_bytes").replace("_", " ")


def _text(key: str, value: object) -> object:
    if key.endswith("bytes") and isinstance(value, int):
        return size_text(value)
    if isinstance(value, dict):
        return ", ".join(f"{_label(k)} {_text(k, v)}" for k, v in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else value


def _versions() -> dict[str, Any]:
    from dspark.machine import describe_versions

    versions = {name: version or "not installed" for name, version in describe_versions().items()}
    return {**versions, "executable": sys.executable}


def _machine() -> dict[str, Any]:
    from dspark.machine import free_memory, total_memory

    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "memory_bytes": total_memory("cpu"),
        "free_memory_bytes": free_memory("cpu"),
    }


def _devices() -> dict[str, Any]:
    import torch

    from dspark.machine import describe_machine, free_memory, total_memory

    machine = describe_machine()
    cpu = {"name": machine["processor"], "threads": machine["torch_threads"]}
    devices: dict[str, Any] = {"cpu": cpu}
    for index in range(torch.cuda.device_count()):
        device = f"cuda:{index}"
        devices[device] = {
            "name": torch.cuda.get_device_name(index),
            "total_bytes": total_memory(device),
            "free_bytes": free_memory(device),
        }
    return devices


def _runtime() -> dict[str, Any]:
    from dspark.config import RuntimeConfig
    from dspark.engine.runtime import resolve_runtime

    runtime = resolve_runtime(RuntimeConfig())
    return {
        "device": runtime.device,
        "dtype": runtime.dtype,
        "demo_weights": _demo_format(runtime.device),
        "reason": runtime.reason,
        **_gpu_kernels(runtime.device),
        "gguf_on_the_cpu": _gguf_text(),
    }


def _demo_format(device: str) -> str:
    """How the demo's weights are held, which are stored in codes."""
    from dspark import hub
    from dspark.config import DEFAULT_PAIR, RuntimeConfig
    from dspark.hub.memory_fit import number_format, pair_footprint, room_for, rooms

    pair = hub.find_pair(DEFAULT_PAIR)
    return number_format(pair_footprint(pair), room_for(RuntimeConfig(device), rooms()))


def _gpu_kernels(device: str) -> dict[str, str]:
    """What runs on a GPU, and what compiles it."""
    import torch

    from dspark_kernels.backend import choose_backend

    if not device.startswith("cuda"):
        return {}
    backend = choose_backend(torch.device(device))
    if backend.name == "torch":
        return {"gpu_kernels": f"plain PyTorch, several times slower ({backend.reason})"}
    compiler = os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")
    missing = "none: Triton needs one at the first start. Install gcc, or name one in CC"
    return {"gpu_kernels": backend.reason, "c_compiler": compiler or missing}


def _gguf_text() -> str:
    """The kernels that multiply a GGUF's weights."""
    from dspark import hub
    from dspark_kernels.cpu.runtime import keep_compiled, usable_backend

    keep_compiled(hub.home() / "kernels")
    backend = usable_backend()
    if backend.variant is None:
        return f"unpacked to float32, in plain torch ({backend.reason})"
    return (
        f"as stored, times rows rounded to 16 bits, by {backend.variant.name} kernels "
        f"({backend.reason}); --dtype float32 unpacks them"
    )


def _store() -> dict[str, Any]:
    from dspark import hub
    from dspark.machine import free_disk

    home = hub.home()
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    return {
        "path": str(home),
        "used_bytes": hub.folder_bytes(home),
        "free_bytes": free_disk(home),
        "is_writable": os.access(existing, os.W_OK),
    }


def _speeds() -> dict[str, Any]:
    """The SPS tables that schedules use, each with its age."""
    from dspark.engine.schedule.sps_profile import stored_tables
    from dspark.engine.scheduled_engine import sps_folder

    return {table.pair: _speed_text(table) for table in stored_tables(sps_folder())}


def _speed_text(table: "SpsTable") -> str:
    minutes = max(0.0, time.time() - table.measured_at) / 60
    age = f"{minutes / 60:.0f} h" if minutes > 90 else f"{minutes:.0f} min"
    row, last = 1000 * table.verify_seconds[0], 1000 * table.verify_seconds[-1]
    noise = ", noisy: measured again at the next start" if table.is_noisy else ""
    return (
        f"{row:.1f} ms for 1 row, {last:.1f} ms for {table.rows[-1]}, "
        f"spread {table.spread:.0%}, measured {age} ago{noise}"
    )


def _hugging_face() -> dict[str, Any]:
    from huggingface_hub import constants

    return {"home": constants.HF_HOME, "offline": constants.HF_HUB_OFFLINE}


def _pairs() -> dict[str, Any]:
    from dspark import hub
    from dspark.hub.memory_fit import pair_fit

    runtime = _runtime()
    report = {}
    for pair in hub.known_pairs().values():
        fit = pair_fit(pair, runtime["device"])
        report[pair.name] = {
            "fits": fit.is_enough if fit.needed else None,
            "memory_bytes": fit.needed or None,
            "free_memory_bytes": fit.free,
            "in_store": hub.locate(pair.name) is not None,
            "disk_still_needed_bytes": hub.disk_needed(pair),
            **_room_for_text(pair.name, runtime),
        }
    return report


def _room_for_text(name: str, runtime: dict[str, Any]) -> dict[str, Any]:
    """Tokens of context that fit in memory next to the weights; known for pairs in the store."""
    from dspark import hub
    from dspark.checkpoints.model_folder import check_model_folder
    from dspark.kvcache.sizing import tokens_that_fit

    files = hub.locate(name)
    if files is None:
        return {}
    check_model_folder(files.target)  # names the damaged file
    tokens = tokens_that_fit(files.target, files.draft, runtime["device"])
    return {"tokens_beside_weights": tokens}


SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "versions": _versions,
    "machine": _machine,
    "devices": _devices,
    "runtime": _runtime,
    "store": _store,
    "measured_speeds": _speeds,
    "hugging_face": _hugging_face,
    "pairs": _pairs,
}
