"""Every kernel on this machine's GPU: correctness, and time against the floor set by its bytes.

python benchmarks/gpu.py --json benchmarks/results/gpu-h200.json    all of it, within eight minutes
python benchmarks/gpu.py --only card,checks                         some of it
python benchmarks/gpu.py --floors                                   what the bytes say, no GPU asked
python benchmarks/gpu.py --interpret                                tiny, on the CPU, without times

Sections run in separate processes, the checks in several at once, which compile the kernels for
all: what hangs or breaks the device ends alone. The file is rewritten after every section.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# also where the project is not installed
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "benchmarks")]

# each section's share of the time that is left when it begins, in the order in which they run
SECTIONS = {
    "card": 30,
    "checks": 150,
    "rounds": 90,
    "skinny": 75,
    "attention": 40,
    "others": 40,
    "identity": 60,
    "peers": 100,
}
TOTAL_SECONDS = 455
GRACE_SECONDS = 15  # for a process to finish its current work; the next section has less for it
H200_BANDWIDTH = 4.3e12  # bytes a second, once measured by copying; for --floors alone


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for all sections")
    parser.add_argument(
        "--interpret", action="store_true", help="Triton's interpreter, tiny shapes"
    )
    parser.add_argument("--floors", action="store_true", help="print the floors of each model")
    parser.add_argument(
        "--bandwidth",
        type=float,
        default=0.0,
        help="bytes per second, if the section card is not run",
    )
    parser.add_argument(
        "--processes", type=int, help="that share the checks; 0: all in this one (with --interpret)"
    )
    parser.add_argument("--deepspec", type=Path, help="a checkout of DeepSpec, for peers")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)  # section, share, of, file
    arguments = parser.parse_args()
    arguments.names = arguments.only.split(",") if arguments.only else list(SECTIONS)
    unknown = [name for name in arguments.names if name not in SECTIONS]
    if unknown:
        parser.error(f"no such section: {', '.join(unknown)}")
    return arguments


def section_records(
    name: str, share: tuple[int, int], deadline: float, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Records of one section, made in this process, until `deadline`, as time.time has it."""
    import torch
    from gpu_parts import card, checks, identity, peers, rounds, timings
    from gpu_parts.setting import Setting

    functions: dict[str, Callable[[Setting], Iterator[dict[str, Any]]]] = {
        "card": card.describe_card,
        "checks": checks.check_kernels,
        "rounds": rounds.time_rounds,
        "skinny": timings.time_skinny,
        "attention": timings.time_attention,
        "others": timings.time_others,
        "identity": identity.check_identity,
        "peers": peers.beside_peers,
    }
    device = torch.device("cpu" if arguments.interpret else "cuda")
    setting = Setting(
        device, arguments.interpret, deadline, arguments.bandwidth, share, arguments.deepspec
    )
    torch.manual_seed(0)
    with torch.inference_mode():
        for record in functions[name](setting):
            yield record
            if setting.seconds_left <= 0:
                yield {"stopped": f"{name}: its time was up"}
                return


def work(arguments: argparse.Namespace) -> None:
    """A process that the section was given to: a line of JSON per record."""
    name, index, count, file = arguments.worker
    with Path(file).open("a", encoding="utf-8") as lines:
        share = (int(index), int(count))
        # a process is told the time itself: what it takes to start is the section's
        for record in section_records(name, share, arguments.seconds, arguments):
            lines.write(json.dumps(record) + "\n")
            lines.flush()


def in_processes(
    name: str, count: int, deadline: float, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """The section's records from `count` processes; those that hang are ended."""
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.jsonl" for index in range(count)]
        common = [sys.executable, __file__, "--seconds", str(deadline)]
        common += ["--bandwidth", str(arguments.bandwidth)]
        common += ["--interpret"] if arguments.interpret else []
        common += ["--deepspec", str(arguments.deepspec)] if arguments.deepspec else []
        running = [
            subprocess.Popen([*common, "--worker", name, str(index), str(count), str(file)])
            for index, file in enumerate(files)
        ]
        for index, process in enumerate(running):
            try:
                code: int | str = process.wait(max(deadline + GRACE_SECONDS - time.time(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = "hung, and was ended"
            lines = files[index].read_text("utf-8") if files[index].exists() else ""
            records += [json.loads(line) for line in lines.splitlines() if line.endswith("}")]
            if code != 0:
                records.append({"ok": False, "error": f"process {index} of {name}: {code}"})
    return records


def fair_share(name: str, names: list[str], left: float) -> float:
    """Seconds for one of the remaining sections; unused time goes to the others."""
    following = names[names.index(name) :]
    return left * SECTIONS[name] / sum(SECTIONS[each] for each in following)


def run_sections(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each section with its records; the bandwidth that one measures scales the others."""
    end = time.time() + arguments.seconds
    for name in arguments.names:
        started = time.time()
        seconds = fair_share(name, arguments.names, end - started)
        if seconds < 5 and not arguments.interpret:
            yield name, {"records": [], "skipped": "no time was left"}
            continue
        print(f"{name}, {seconds:.0f} s at most", file=sys.stderr, flush=True)
        if arguments.processes == 0:
            records = list(section_records(name, (0, 1), started + seconds, arguments))
        else:
            count = arguments.processes if name == "checks" else 1
            records = in_processes(name, count, started + seconds, arguments)
        for record in records:
            rate = record.get("bytes_per_second")
            arguments.bandwidth = rate or arguments.bandwidth
        yield name, {"seconds": round(time.time() - started, 1), "records": records}


def hurry_interpreter() -> None:
    from gpu_parts.interpreter import patch_once_a_launch, patch_products

    from dspark_kernels.backend import HAS_TRITON

    if HAS_TRITON:
        patch_once_a_launch()
        patch_products()


def choose_processes() -> int:
    """For the checks: compiling takes a core each, the largest of them some gigabytes each."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    return max(1, min((os.cpu_count() or 1) - 2, int(free / 10e9), 12))


def main() -> int:
    arguments = parse_arguments()
    if arguments.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    if arguments.floors:
        from gpu_parts.shapes import floor_table

        print(floor_table(arguments.bandwidth or H200_BANDWIDTH))
        return 0
    if arguments.interpret:
        hurry_interpreter()
    if arguments.worker:
        work(arguments)
        return 0
    import torch
    from gpu_parts.table import print_tables

    from dspark.bench.document import provenance, write_document

    if not arguments.interpret and not torch.cuda.is_available():
        print("no CUDA device is there; --interpret runs tiny shapes on the CPU", file=sys.stderr)
        return 1
    if arguments.processes is None:
        arguments.processes = 0 if arguments.interpret else choose_processes()
    command = shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
    results: dict[str, Any] = {}
    document = {
        "interpreted": arguments.interpret,
        "sections": results,
        "settings": {"only": arguments.names, "seconds": arguments.seconds},
        **provenance(command),
    }
    for name, section in run_sections(arguments):
        results[name] = section
        document["settings"]["bandwidth"] = arguments.bandwidth
        if arguments.json:
            write_document(arguments.json, document)
    print_tables(document)
    failed = [r for s in results.values() for r in s["records"] if r.get("ok") is False]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
