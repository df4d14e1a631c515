"""Six kernels under Nsight Compute, and every kernel under the sanitizer, where these are there."""

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from dspark_kernels import skinny_linear
from dspark_kernels.paged_attention import paged_attention
from gpu_parts.setting import TAIL, Record, Setting, random_pool, random_weight, rows_at
from gpu_parts.shapes import SHAPES, TINY
from gpu_parts.timings import accept_arms, head_arms

FOLDER = Path(__file__).parents[1]
KERNELS = "skinny_kernel|paged_attention_kernel|vocabulary_kernel|features_kernel|row_kernel"
METRICS = frozenset({
    "Duration", "DRAM Throughput", "Memory Throughput", "L2 Hit Rate", "Registers Per Thread",
    "Achieved Occupancy", "Theoretical Occupancy", "Executed Ipc Active", "Issue Slots Busy",
})  # fmt: skip


def profile_kernels(setting: Setting) -> Iterator[Record]:
    profiled = ["ncu", "--kernel-name", f"regex:{KERNELS}", "--set", "full", "--clock-control"]
    profiled += ["none", "--csv", "--page", "details"]
    programs = {
        "compute-sanitizer": (["compute-sanitizer", "--tool", "memcheck"], True),
        "ncu": (profiled, False),
    }
    for name, (command, is_tiny) in setting.cases(programs.items()):
        if setting.device.type != "cuda":
            launch_six("tiny", "cpu")
            yield {"program": name, "skipped": "it needs a card"}
        elif shutil.which(name) is None:
            yield {"program": name, "skipped": "it is not installed"}
        else:
            yield from under(name, command, is_tiny, setting)


def under(name: str, command: Sequence[str], is_tiny: bool, setting: Setting) -> Iterator[Record]:
    shape = "tiny" if is_tiny else "large"
    paths = [str(FOLDER), str(FOLDER.parent), str(FOLDER.parent / "kernels")]
    code = f"import sys; sys.path[:0] = {paths}; from gpu_parts.profilers import launch_six; "
    script = [sys.executable, "-c", f"{code}launch_six({shape!r})"]
    try:
        run = subprocess.run(
            [*command, *script], capture_output=True, text=True,
            timeout=max(setting.seconds_left / 2 if is_tiny else setting.seconds_left, 1.0),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        yield {"program": name, "stopped": "its time was up"}
        return
    if name == "ncu" and run.returncode == 0:
        yield from metrics_of(run.stdout)
        return
    is_clean = "ERROR SUMMARY: 0 errors" in run.stdout
    record: Record = {"program": name, "ok": is_clean}
    yield record if is_clean else record | {"error": (run.stdout + run.stderr)[-TAIL:]}


def metrics_of(report: str) -> Iterator[Record]:
    """Of every profiled launch, from ncu's table; other lines stand before it."""
    lines = report.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found: dict[str, Record] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[first:]))):
        if row.get("Metric Name") in METRICS:
            launch = found.setdefault(row["ID"], {"program": "ncu", "profiled": row["Kernel Name"]})
            launch[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    yield from found.values()


@torch.inference_mode()
def launch_six(size: str, device_name: str = "cuda") -> None:
    """Dense, gated and int4 products, attention, a head's step and acceptance, once each."""
    is_tiny = size == "tiny"
    device = torch.device(device_name)
    setting = Setting(device, is_tiny, deadline=0.0)
    shape = TINY if is_tiny else SHAPES[0]
    x = torch.randn(1, shape.hidden_size, device=device, dtype=torch.bfloat16)
    for kind, name in (("bf16", "qkv"), ("bf16", "gate+up"), ("int4", "qkv")):
        weight = random_weight(kind, shape.layer_matrices()[name], device)
        skinny_linear(x, weight, gated=name == "gate+up")
    pool, slots = random_pool(1, shape, 512, setting)
    query = torch.randn(1, shape.num_heads, shape.head_dim, device=device, dtype=torch.bfloat16)
    rows = rows_at(pool, slots, [511], [1], causal=True)
    paged_attention(query, *pool.layer(0), pool.tables, rows, shape.head_dim**-0.5)
    for arms in (head_arms(setting, shape), accept_arms(setting, shape)):
        next(arm for name, (arm, _) in arms.items() if "greedy" not in name).run()
    if device.type == "cuda":
        torch.cuda.synchronize()
