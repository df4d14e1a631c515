"""The rate of decoding next to a busy process and next to a second dspark.

python benchmarks/beside_others.py --json benchmarks/results/beside-others-cpu.json

One answer of the pair per run, in turns over settings of OpenMP's waiting and over company, so that
other noise of the machine hits all alike. `shipped` is what dspark sets by itself; the others are
set as a user would. Two dsparks begin together and each counts. The last part measures the table of
pass times beside a busy process, and tells how soon an answer without company replaces it.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from dspark.bench.document import provenance, write_document
from dspark.engine.schedule.sps_profile import stored_tables

SETTINGS: dict[str, dict[str, str]] = {
    "shipped": {},
    "libgomp's own": {"GOMP_SPINCOUNT": "300000"},
    "spin 5000": {"GOMP_SPINCOUNT": "5000"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
COMPANY = ("alone", "busy process", "second dspark")
PROMPT = "Write a story about the sea"


def start(pair: str, tokens: int, setting: dict[str, str]) -> "subprocess.Popen[str]":
    unset = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-m", "dspark_cli", "generate", "--pair", pair, "--json"]
    return subprocess.Popen(
        [*command, "--max-tokens", str(tokens), PROMPT],
        env={**environment, **setting},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def rate(process: "subprocess.Popen[str]") -> float:
    output, _ = process.communicate()
    return float(json.loads(output)["stats"]["decode_tokens_per_second"])


@contextmanager
def busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(pair: str, tokens: int, setting: dict[str, str], company: str) -> list[float]:
    """tok/s of each dspark that ran."""
    if company == "busy process":
        with busy_process():
            return [rate(start(pair, tokens, setting))]
    processes = [
        start(pair, tokens, setting) for _ in range(2 if company.endswith("dspark") else 1)
    ]
    return [rate(process) for process in processes]


def replaced_table(pair: str, tokens: int) -> dict[str, Any]:
    """The first point of a table measured on a busy machine, and after one undisturbed answer."""
    from dspark.engine.scheduled_engine import sps_folder

    for path in sps_folder().glob("*.json"):
        path.unlink()
    with busy_process():
        # spinning as libgomp would, so that the table is as wrong as a busy minute can make it
        rate(start(pair, 8, SETTINGS["libgomp's own"]))
    busy = next(stored_tables(sps_folder()))
    started = time.time()
    rate(start(pair, tokens, {}))
    quiet = next(stored_tables(sps_folder()))
    return {
        "busy_seconds_of_one_row": busy.verify_seconds[0],
        "busy_spread": busy.spread,
        "seconds_of_one_row_after_an_answer": quiet.verify_seconds[0],
        "spread_after_an_answer": quiet.spread,
        "is_replaced": quiet.measured_at >= started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--pair", default="demo")
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    rates: dict[str, dict[str, list[float]]] = {n: {c: [] for c in COMPANY} for n in SETTINGS}
    for _ in range(arguments.trials):
        for company in COMPANY:
            for name, setting in SETTINGS.items():
                measured = measure(arguments.pair, arguments.tokens, setting, company)
                rates[name][company] += measured
                print(f"{company:14} {name:14} {measured}", flush=True)
    medians = {
        name: {company: statistics.median(values) for company, values in by.items()}
        for name, by in rates.items()
    }
    shares = {
        name: {company: by[company] / by["alone"] for company in COMPANY[1:]}
        for name, by in medians.items()
    }
    document = {
        "tokens_per_second": medians,
        "share_of_the_rate_alone": shares,
        "trials": rates,
        "table_of_a_busy_minute": replaced_table(arguments.pair, arguments.tokens),
        "load_average": os.getloadavg(),
        **provenance(shlex.join(["python", *sys.argv])),
    }
    write_document(arguments.json, document)
    print(
        json.dumps(
            {"medians": medians, "shares": shares, **document["table_of_a_busy_minute"]}, indent=1
        )
    )


if __name__ == "__main__":
    main()
