"""This machine: its memory and disks, and the installed versions."""

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("dspark", "torch", "transformers", "triton")


def total_memory(device: str) -> int:
    """Bytes of the GPU that `device` names, otherwise of the machine."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[1])
    return _host_memory()[0]


def free_memory(device: str) -> int:
    """Free bytes of the same memory."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return _host_memory()[1]


def _host_memory() -> tuple[int, int]:
    """Total and free bytes; without psutil, as on a machine with PyTorch alone, what Linux says."""
    try:
        import psutil
    except ModuleNotFoundError:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def free_disk(folder: Path) -> int:
    """Free bytes of the disk that holds, or would hold, a folder."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"


def megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"


def gibibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def describe_machine() -> dict[str, str | int | float | None]:
    """The machine's facts recorded with a measurement."""
    import torch

    has_cuda = torch.cuda.is_available()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(total_memory("cpu") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if has_cuda else None,
        **describe_clocks(),
    }


def describe_clocks() -> dict[str, str | float | None]:
    """What decides the speed of a moment: governor and clock of the processor, load (mean number of
    running programs), and the GPU's clocks and power; None where it cannot be read."""
    frequency = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    return {
        "governor": _text(frequency / "scaling_governor"),
        "processor_mhz": _processor_mhz(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu_state": _gpu_state(),
    }


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _processor_mhz() -> float | None:
    """Of the fastest core at this moment."""
    found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _text(Path("/proc/cpuinfo")) or "", re.M)
    return max(map(float, found), default=None)


def _gpu_state() -> str | None:
    """Driver, clocks of multiprocessors and memory, power limit, as nvidia-smi states them."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = "driver_version,clocks.sm,clocks.mem,power.limit,persistence_mode"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip().splitlines()[0] if run.stdout.strip() else None


def describe_versions() -> dict[str, str | None]:
    """Of Python and the packages that compute; None for a package that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
