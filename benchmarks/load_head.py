"""Loading a 4B-shaped head against reading its file once, in turns; and the peak memory of it.

python benchmarks/load_head.py --json benchmarks/results/load-head-cpu.json

The file holds random bfloat16 numbers: the head of Qwen3-4B without embedding and output head. A
load counts until every page of every tensor has been touched, because files may be mapped lazily.
Cold: the file is first taken out of the page cache. As stored is how a GPU runs a head, float32 and
packed how a CPU does by default.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.step_memory import peak_bytes
from dspark.bench.document import provenance, write_document
from dspark.checkpoints.deepspec import write_head
from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.checkpoints.heads import SHARED_WITH_TARGET, read_draft
from dspark.drafters.dspark import DSparkDrafter
from dspark_kernels import SkinnyLinear

PAGE = 4096
CONFIG = DSparkConfig(
    vocab_size=151_936,
    hidden_size=2560,
    intermediate_size=9728,
    num_layers=5,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    block_size=7,
    mask_token_id=151_669,
    target_layer_ids=(1, 9, 17, 25, 33),
    num_target_layers=36,
    markov_type="vanilla",
    markov_rank=256,
    has_confidence=True,
    confidence_with_markov=True,
)


def write_random_head(folder: Path) -> Path:
    tensors = {
        name: torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.02, 0.02)
        for name, shape in CONFIG.expected_tensors().items()
        if name not in SHARED_WITH_TARGET
    }
    write_head(folder, CONFIG, tensors, {})
    return folder / "model.safetensors"


def read_once(path: Path) -> None:
    buffer = bytearray(16 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def forget(path: Path) -> None:
    """Out of the page cache, as far as no process maps it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(folder: Path, table: torch.Tensor) -> DSparkDrafter:
    """`table` stands for the target's embedding and output head, which are there before; in float32
    the head is packed, as by default on a CPU."""
    config, tensors = read_draft(folder)
    for tensor in tensors.values():
        tensor.view(-1).view(torch.uint8)[::PAGE].sum()
    assert isinstance(config, DSparkConfig)
    is_prepacked = table.dtype == torch.float32
    return DSparkDrafter(
        config, tensors, table, SkinnyLinear(table, prepack=False), prepack=is_prepacked
    )


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def trial(path: Path, table: torch.Tensor, is_cold: bool) -> tuple[float, float]:
    """Seconds to read the file once, and to load it."""
    peaks = []
    for run in (lambda: read_once(path), lambda: load(path.parent, table)):
        if is_cold:
            forget(path)
        peaks.append(seconds(run))
    return peaks[0], peaks[1]


def measure(path: Path, dtype: torch.dtype, num_trials: int) -> dict[str, object]:
    table = torch.zeros(CONFIG.vocab_size, CONFIG.hidden_size, dtype=dtype)
    read_once(path)
    peak, num_bytes = peak_bytes(lambda: load(path.parent, table), "cpu"), path.stat().st_size
    figures: dict[str, object] = {"peak_bytes": peak, "peak_to_file": peak / num_bytes}
    for name, is_cold in (("warm", False), ("cold", True)):
        trials = [trial(path, table, is_cold) for _ in range(num_trials)]
        ratio = statistics.median(loading / reading for reading, loading in trials)
        figures[name] = {"seconds_read_and_load": trials, "load_to_read": ratio}
        print(f"{dtype}, {name}: load / read once {ratio:.2f} (median of {num_trials})")
    print(f"{dtype}: peak memory / file {peak / num_bytes:.2f}")
    return figures


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as name:
        path = write_random_head(Path(name) / "head")
        results = {
            "device": "cpu",
            "file_bytes": path.stat().st_size,
            "as_stored": measure(path, torch.bfloat16, arguments.trials),
            "float32_packed": measure(path, torch.float32, 1),
        }
    if arguments.json:
        command = shlex.join(["python", "benchmarks/load_head.py", *sys.argv[1:]])
        write_document(arguments.json, results | {"settings": {"page": PAGE}} | provenance(command))


if __name__ == "__main__":
    main()
