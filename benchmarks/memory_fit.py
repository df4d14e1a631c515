"""The stated memory of a pair against the measured peak of a process that runs it.

python benchmarks/memory_fit.py --json benchmarks/results/memory-fit-cpu.json

The demo pair, briefly and with a context that is full, a random model of 0.6 billion parameters in
both number formats, and a small grafting. Needs the demo pair (dspark pull demo), 4 GB of memory
and some minutes. Peaks are of resident memory, as the system counts them (Linux, macOS).

python benchmarks/memory_fit.py --codes

The demo's target alone, in its codes: the peak of loading it, of a prompt and of a verification,
above what the process held before, over the file.
"""

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from dspark import hub
from dspark.bench.document import provenance, write_document
from dspark.checkpoints.model_folder import ModelFolder
from dspark.graft.plan import Memory
from dspark.hub import home
from dspark.hub.footprint import of_folders
from dspark.hub.memory_needed import CACHE_TOKENS, Room, memory_needed
from dspark.targets.load import load_target
from dspark.targets.stored import build_kernels
from dspark_kernels.cpu.runtime import keep_compiled

LIMIT = 0.10  # how far the figure may be off
CODES_LIMIT = 1.4  # of a target in codes, over its file
NEW_TOKENS, SHORT = 32, 36
CPU = Room("cpu", 0, 4, keeps_codes=True)
COMMAND = [sys.executable, "-m", "dspark_cli"]
GRAFT = (
    *("--train", "--prompts", "self:24", "--max-answer-tokens", "40", "--length", "128"),
    *("--eval-prompts", "4", "--steps", "4", "--batch-size", "4", "--anchors", "16"),
    "--no-measure",
)
KIB = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--codes", action="store_true", help="the target in codes, over its file")
    arguments = parser.parse_args()
    if arguments.codes:
        return _print_codes_over_file()
    path = arguments.json
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, stated, peak in _cases(Path(folder)):
            cases[name] = {"stated_bytes": stated, "peak_bytes": peak, "ratio": stated / peak}
            print(
                f"{name}: stated {stated / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB, "
                f"{stated / peak - 1:+.1%}",
                flush=True,
            )
    if path:
        command = shlex.join(["python", *sys.argv])
        write_document(path, {"limit": LIMIT, "cases": cases} | provenance(command))
    if any(abs(case["ratio"] - 1.0) > LIMIT for case in cases.values()):
        sys.exit("a figure is off by more than the limit")


def _cases(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Name, bytes stated and measured peak of each."""
    files = hub.locate("demo")
    if files is None:
        sys.exit("run dspark pull demo first")
    pair = of_folders(files.target, files.draft)
    yield "demo", memory_needed(pair, CPU, SHORT + NEW_TOKENS), _generate(SHORT)
    yield "demo, full context", memory_needed(pair, CPU), _generate(CACHE_TOKENS - 2 * NEW_TOKENS)
    model = _random_model(folder / "model")
    of = of_folders(model, None)
    for room in (CPU, replace(CPU, value_bytes=2)):
        peak = _generate(SHORT, "--target", model, "--draft", "none", "--dtype", room.dtype)
        yield (
            f"random, {of.values / 1e9:.2f} B, {room.dtype}",
            memory_needed(of, room, SHORT + NEW_TOKENS),
            peak,
        )
    yield "grafting the demo", _planned(folder / "head"), _peak(_graft(folder / "head"))


def _print_codes_over_file() -> None:
    """Kernels are compiled before, as they are at every start but the first."""
    files = hub.locate("demo")
    if files is None:
        sys.exit("run dspark pull demo first")
    target = ModelFolder.of(files.target)
    load = partial(load_target, target, tap_layers=(), device=torch.device("cpu"))
    keep_compiled(home() / "kernels")
    for _ in build_kernels(target):
        pass
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far does not count
    loaded = load(dtype=torch.float32, as_stored=True)
    slot = loaded.open()
    loaded.prefill(slot, torch.arange(SHORT))
    loaded.verify([slot], [torch.arange(5)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB - before
    size = sum(path.stat().st_size for path in target.path.glob("*.safetensors"))
    print(f"codes: {peak / 1e6:.0f} MB for a file of {size / 1e6:.0f}: {peak / size:.2f}")
    if peak > CODES_LIMIT * size:
        sys.exit(f"more than {CODES_LIMIT} times the file")


def _random_model(folder: Path) -> Path:
    config = LlamaConfig(
        vocab_size=64_000,
        hidden_size=1280,
        intermediate_size=3584,
        num_hidden_layers=24,
        num_attention_heads=20,
        num_key_value_heads=5,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    return folder


def _generate(num_prompt_tokens: int, *options: object) -> int:
    ids = ",".join(str(5 + i % 1000) for i in range(num_prompt_tokens))
    asked = ["generate", "--token-ids", ids, "--max-tokens", NEW_TOKENS, "--json", *options]
    return _peak([*COMMAND, *map(str, asked)])


def _graft(out: Path) -> list[str]:
    return [*COMMAND, "graft", "demo", *GRAFT, "--out", str(out)]


def _planned(out: Path) -> int:
    output = subprocess.run(
        [*_graft(out), "--dry-run", "--json"], capture_output=True, text=True, check=True
    )
    fields: dict[str, Any] = json.loads(output.stdout)["memory"]
    return Memory(**{name: fields[name] for name in Memory.__slots__}).total


def _peak(command: Sequence[str]) -> int:
    """Bytes of resident memory at the highest."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)[:200]} failed: {errors.read()[-500:]!r}")
    return int(usage.ru_maxrss) * KIB


if __name__ == "__main__":
    main()
