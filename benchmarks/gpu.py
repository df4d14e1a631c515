"""The engine and every kernel on this machine's GPU: right or wrong, and how far from the floor.

python benchmarks/gpu.py --json benchmarks/results/gpu-h200.json    all of it, within nine minutes
python benchmarks/gpu.py --first-minute                             if there is only one
python benchmarks/gpu.py --first-contact                            does the engine run at all?
python benchmarks/gpu.py --only card,checks                         some of it
python benchmarks/gpu.py --floors                                   what the bytes say, no GPU asked
python benchmarks/gpu.py --interpret                                tiny, on the CPU, without times

Sections run in separate processes, some in several at once, which compile the kernels for all: what
hangs or breaks the device ends alone. Records are appended to a .jsonl file beside the results as
they are made. benchmarks/GPU_TODO.md says what to run next.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# also where the project is not installed
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "benchmarks")]

H200_BANDWIDTH = 4.3e12  # bytes a second, once measured by copying; for --floors alone


def parse_arguments() -> argparse.Namespace:
    from gpu_parts.sections import FIRST_CONTACT, FIRST_MINUTE, SECTIONS, TOTAL_SECONDS, UNASKED

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--first-minute", action="store_true", help=", ".join(FIRST_MINUTE))
    parser.add_argument("--first-contact", action="store_true", help=", ".join(FIRST_CONTACT))
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--seconds", type=float, help="for all sections")
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
        "--processes", type=int, help="that share a section; 0: all in this one (with --interpret)"
    )
    parser.add_argument("--deepspec", type=Path, help="a checkout of DeepSpec, for peers")
    parser.add_argument(
        "--stand-ins", nargs="*", default=[], help="modules of kernels to replace by plain torch"
    )
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)  # see work
    arguments = parser.parse_args()
    names, seconds = UNASKED, TOTAL_SECONDS
    if arguments.first_contact:
        names, seconds = FIRST_CONTACT, 300
    if arguments.first_minute:
        names, seconds = FIRST_MINUTE, 60
    arguments.names = arguments.only.split(",") if arguments.only else list(names)
    arguments.seconds = arguments.seconds or seconds
    unknown = [name for name in arguments.names if name not in SECTIONS]
    if unknown:
        parser.error(f"no such section: {', '.join(unknown)}")
    return arguments


def run_sections(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each section with its records; the bandwidth that one measures scales the others."""
    from gpu_parts.processes import in_processes, make_records, make_setting
    from gpu_parts.sections import SECTIONS, fair_share
    from gpu_parts.stand_ins import failed_modules

    end = time.time() + arguments.seconds
    for name in arguments.names:
        started = time.time()
        seconds = fair_share(name, arguments.names, end - started)
        if seconds < 5 and not arguments.interpret:
            yield name, {"records": [], "skipped": "no time was left"}
            continue
        print(f"{name}, {seconds:.0f} s at most", file=sys.stderr, flush=True)
        # switches of the environment need a process of their own
        if arguments.processes == 0 and not SECTIONS[name].environment:
            setting = make_setting(arguments, (0, 1), started + seconds)
            records = list(make_records(name, setting))
        else:
            count = max(arguments.processes, 1) if SECTIONS[name].is_shared else 1
            records = in_processes(name, count, started + seconds, arguments, __file__)
        for record in records:
            arguments.bandwidth = record.get("bytes_per_second") or arguments.bandwidth
        if name == "kernels":
            arguments.stand_ins = sorted({*arguments.stand_ins, *failed_modules(records)})
        yield name, {"seconds": round(time.time() - started, 1), "records": records}


def hurry_interpreter() -> None:
    from gpu_parts.interpreter import patch_once_a_launch, patch_products

    from dspark_kernels.backend import HAS_TRITON

    if HAS_TRITON:
        patch_once_a_launch()
        patch_products()


def choose_processes() -> int:
    """Compiling takes a core each, the largest of the checks some gigabytes each."""
    import torch
    from gpu_parts.sections import MOST_PROCESSES

    free, _ = torch.cuda.mem_get_info()
    return max(1, min((os.cpu_count() or 1) - 2, int(free / 10e9), MOST_PROCESSES))


def run_all(arguments: argparse.Namespace) -> int:
    """Prints tables, writes the results after every section; 1 if something was wrong."""
    from gpu_parts.table import print_tables

    from dspark.bench.document import provenance, write_document

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
        document["settings"] |= {"bandwidth": arguments.bandwidth, "stand_ins": arguments.stand_ins}
        if arguments.json:
            write_document(arguments.json, document)
    print_tables(document)
    failed = [r for s in results.values() for r in s["records"] if r.get("ok") is False]
    return 1 if failed else 0


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
        from gpu_parts.processes import work

        return work(arguments)
    import torch

    if not arguments.interpret and not torch.cuda.is_available():
        print("no CUDA device is there; --interpret runs tiny shapes on the CPU", file=sys.stderr)
        return 1
    if arguments.processes is None:
        arguments.processes = 0 if arguments.interpret else choose_processes()
    arguments.lines = arguments.json and arguments.json.with_suffix(".jsonl")
    return run_all(arguments)


if __name__ == "__main__":
    sys.exit(main())
