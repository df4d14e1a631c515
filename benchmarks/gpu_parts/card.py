"""The card as it was found, and its copy bandwidth: the denominator of every ratio."""

import subprocess
from collections.abc import Iterator

import torch

from dspark_kernels.backend import choose_backend
from gpu_parts.setting import Record, Setting
from gpu_parts.stopwatch import Arm, Stopwatch

COPY_BYTES = 4 << 30
QUERIED = (
    "name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.mem",
    "clocks.max.sm", "clocks.max.mem", "power.draw", "power.limit", "temperature.gpu",
)  # fmt: skip


def describe_card(setting: Setting) -> Iterator[Record]:
    yield {"what": "backend", **choose_backend(setting.device)._asdict()}
    yield {"what": "card at rest", **asked_of_driver()}
    if setting.device.type == "cuda":
        facts = torch.cuda.get_device_properties(setting.device)
        yield {
            "what": "device",
            "name": facts.name,
            "capability": f"{facts.major}.{facts.minor}",
            "multiprocessors": facts.multi_processor_count,
            "memory_gib": round(facts.total_memory / 2**30, 1),
            "l2_mib": round(getattr(facts, "L2_cache_size", 0) / 2**20, 1),
            "cuda": torch.version.cuda,
        }
    yield copy_bandwidth(setting)
    yield {"what": "card after copying", **asked_of_driver()}


def copy_bandwidth(setting: Setting) -> Record:
    """Bytes read and written by a copy on the device; random bytes, since zeros may run faster."""
    num_bytes = 1 << 12
    if setting.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(setting.device)
        num_bytes = min(COPY_BYTES, free // 4)
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    timing = Stopwatch(setting).measure({"copy": Arm(lambda: target.copy_(source))})["copy"]
    rate = 2 * num_bytes / (timing["us"] * 1e-6) if timing["us"] else 0.0
    return {"what": "copy bandwidth", "bytes": num_bytes, **timing, "bytes_per_second": rate}


def asked_of_driver() -> Record:
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERIED)}", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"skipped": f"nvidia-smi: {type(error).__name__}"}
    values = run.stdout.splitlines()[0].split(", ")
    return dict(zip(QUERIED, values, strict=False))
