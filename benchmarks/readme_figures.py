"""The figures of README.md, written between its marks from benchmarks/results.

python benchmarks/readme_figures.py
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->\n)", re.DOTALL)
OURS = ("plain", "dspark")  # the first rows of a setting
HEADER = (
    "| pair, machine | program | tok/s (decode) | τ | identical output |\n|---|---|---|---|---|\n"
)


def with_figures(page: str) -> str:
    """The page with each marked block regenerated."""
    blocks = {"table": _table, "gains": _gains}
    return BLOCK.sub(lambda match: f"{match[1]}{blocks[match[2]]()}{match[3]}", page)


def _table() -> str:
    rows = [
        *_program_rows("vs-llama-cpp-cpu.json", "weights as stored, llama.cpp without AMX"),
        *_bench_rows("demo-cpu.json"),
        *_bench_rows("demo-cpu-amd.json"),
        *_program_rows(
            "vs-transformers-cpu.json", "separate run, previous head; 6 prompts are chat"
        ),
    ]
    return HEADER + "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |") for cells in rows)


def _bench_rows(name: str) -> Iterator[tuple[str, ...]]:
    """Of a file that `dspark bench PAIR --output` wrote."""
    result = _result(name)
    prompts = result["settings"]["prompts"]
    same = _count(prompts - result["differing_prompts"], prompts)
    yield _setting(result), "plain decoding", _rate(result["plain"]), "1", ""
    speed = f"{_rate(result['dspark'])} ({result['speedup']:.2f} ×)"
    yield "", "DSpark", speed, f"{result['tau']:.2f}", same


def _program_rows(name: str, note: str) -> Iterator[tuple[str, ...]]:
    """Of a file that benchmarks/vs_transformers.py wrote: ours first, then the fastest."""
    result = _result(name)
    programs = sorted(result["programs"].items(), key=_place)
    labels = {"plain": "plain decoding", "dspark": "DSpark", "llama.cpp": "llama.cpp, no drafts"}
    first = f"{_setting(result)}; {note}"
    for program, figures in programs:
        label = labels.get(program, program.replace(" ", ", "))
        same = _count(figures["prompts_written_like_plain"], result["settings"]["prompts"])
        is_plain = program == "plain"
        yield first, label, _rate(figures["decode"]), *(("1", "") if is_plain else ("", same))
        first = ""


def _place(program: tuple[str, Mapping[str, Any]]) -> tuple[int, float]:
    name, figures = program
    rank = OURS.index(name) if name in OURS else len(OURS)
    return rank, -_median(figures["decode"])


def _gains() -> str:
    """What drafts gain by category, largest first, and what they cost with weights as stored."""
    result = _result("demo-cpu.json")
    categories = sorted(result["categories"], key=lambda category: -category["speedup"])
    *others, last = (f"{each['speedup']:.2f} × on {each['category']}" for each in categories)
    gains = f"{', '.join(others)} and {last}"
    stored = _result("vs-llama-cpp-cpu.json")["programs"]
    plain, dspark, peer = (_median(stored[name]["decode"]) for name in (*OURS, "llama.cpp"))
    return (
        f"In float32 drafts gain {gains} on {_processor(result)}.\n"
        "With weights as stored, the default on a CPU, plain decoding of the demo is "
        f"{plain / peer:.1f} times as fast as llama.cpp's\n"
        "and drafts cost a little more than they save: "
        f"with them it writes {dspark:.1f} tok/s, without (`--draft none`) {plain:.1f}.\n"
    )


def _setting(result: Mapping[str, Any]) -> str:
    settings = result["settings"]
    size = f"{settings['prompts']} prompts × {settings['max_tokens']} tokens"
    cores = f"{result['machine']['cores']} cores"
    return f"{_pair(result)}, {cores} of {_processor(result)}, {settings['dtype']}; {size}"


def _pair(result: Mapping[str, Any]) -> str:
    return str(result.get("pair") or result["settings"]["pair"])


def _processor(result: Mapping[str, Any]) -> str:
    name = result["machine"]["processor"].replace("(R)", "").removesuffix(" Processor")
    return f"an {name}"


def _rate(figure: Mapping[str, Any]) -> str:
    return f"{_median(figure):.1f}"


def _median(figure: Mapping[str, Any]) -> float:
    return float(figure["median"])


def _count(same: int, prompts: int) -> str:
    return f"all {prompts}" if same == prompts else f"{same} of {prompts}"


def _result(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / name).read_text("utf-8")))


if __name__ == "__main__":
    README.write_text(with_figures(README.read_text("utf-8")), "utf-8")
