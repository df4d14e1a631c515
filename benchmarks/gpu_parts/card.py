"""The card as it was found, and its bandwidths; the copy's is the denominator of every ratio."""

import platform
import shutil
import subprocess
from collections.abc import Iterator

import torch

from dspark_kernels.backend import choose_backend, jit, tl, triton, use_triton
from gpu_parts.setting import Record, Setting
from gpu_parts.stopwatch import Arm, Stopwatch

COPY_BYTES = 4 << 30
READ_BLOCK = 1024  # numbers that one program reads, four bytes each
READ_BYTES = 4 * READ_BLOCK
QUERIED = (
    "name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.mem",
    "clocks.max.sm", "clocks.max.mem", "power.draw", "power.limit", "temperature.gpu",
)  # fmt: skip


def describe_card(setting: Setting) -> Iterator[Record]:
    yield {"what": "backend", **choose_backend(setting.device)._asdict()}
    yield {
        "what": "programs",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": getattr(triton, "__version__", None),
        "gcc": shutil.which("gcc"),  # Triton's launchers need it
        "ncu": shutil.which("ncu"),
        "compute-sanitizer": shutil.which("compute-sanitizer"),
    }
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
    yield from bandwidths(setting)
    yield {"what": "card after copying", **asked_of_driver()}


def bandwidths(setting: Setting) -> Iterator[Record]:
    """Of a copy, which scales all other figures, and of reading alone, which may reach more.

    Random bytes, since zeros may run faster.
    """
    num_bytes = 1 << 12
    if setting.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(setting.device)
        num_bytes = min(COPY_BYTES, free // 4)
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    arms = {"copy": Arm(lambda: target.copy_(source))}
    if use_triton(torch.empty(0, device=setting.device)):
        numbers = source.view(torch.int32)
        sums = torch.empty(num_bytes // READ_BYTES or 1, dtype=torch.int32, device=setting.device)
        arms["read"] = Arm(lambda: read_kernel[(len(sums),)](numbers, sums, BLOCK=READ_BLOCK))
    timings = Stopwatch(setting).measure(arms)
    for name, moved in (("copy", 2 * num_bytes), ("read", num_bytes)):
        if name in timings:
            us = timings[name].get("us")
            rate = moved / (us * 1e-6) if us else 0.0
            # the copy's is the denominator
            key = "bytes_per_second" if name == "copy" else "read_bytes_per_second"
            yield {"what": f"{name} bandwidth", "bytes": moved, **timings[name], key: rate}


@jit
def read_kernel(numbers: tl.tensor, sums: tl.tensor, BLOCK: tl.constexpr) -> None:
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(sums + tl.program_id(0), tl.sum(tl.load(numbers + at), axis=0))


def asked_of_driver() -> Record:
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERIED)}", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"skipped": f"nvidia-smi: {type(error).__name__}"}
    values = run.stdout.splitlines()[0].split(", ")
    return dict(zip(QUERIED, values, strict=False))
