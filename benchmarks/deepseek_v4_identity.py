"""20,000 greedy tokens of a toy DeepSeek-V4: the same with drafts, schedules and company.

python benchmarks/deepseek_v4_identity.py --json benchmarks/results/deepseek-v4-identity-cpu.json

The toy is in the published layout: four layers of all kinds, FP8 and FP4, YaRN, random weights and
a random head of three stages. That head is rarely right, so lookup drafts as well, which is right
where a text repeats itself. --progress keeps what is done: an interrupted run goes on.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.demo_identity import TABLE, decode, summed
from dspark.bench.document import provenance, write_document
from dspark.config import EngineConfig, RuntimeConfig, SamplingConfig, ScheduleConfig, StopConfig
from dspark.drafters.base import Drafter
from dspark.drafters.lookup import LookupDrafter
from dspark.engine.loop import Engine
from dspark.engine.request import Request
from dspark.engine.schedule.policies import FullSchedule, Scheduler, SpsSchedule
from dspark.engine.session import Session, open_session
from dspark.hub import PairFiles
from dspark.progress import follow
from tests.deepseek_v4_toy import write

AT_ONCE = 8
YARN = {"factor": 16, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 256}


class Arm(NamedTuple):
    name: str
    drafter: Drafter | None
    scheduler: Scheduler
    at_once: int


def arms(session: Session) -> list[Arm]:
    head, lookup = session.engine.drafter, LookupDrafter()
    return [
        Arm("plain", None, FullSchedule(), AT_ONCE),
        Arm("head, whole blocks", head, FullSchedule(), 1),
        Arm("head, whole blocks", head, FullSchedule(), AT_ONCE),
        Arm("head, by cost", head, SpsSchedule(TABLE), 3),
        Arm("lookup, whole blocks", lookup, FullSchedule(), 1),
        Arm("lookup, whole blocks", lookup, FullSchedule(), AT_ONCE),
    ]


def asks(batch: int, max_tokens: int) -> list[Request]:
    """Random prompts of 5 to 40 tokens."""
    generator = torch.Generator().manual_seed(batch)
    stop = StopConfig(max_tokens=max_tokens, ignore_stop_tokens=True)
    sizes = [5 + 5 * index for index in range(AT_ONCE)]
    prompts = [torch.randint(2, 95, (size,), generator=generator).tolist() for size in sizes]
    return [Request(tuple(each), SamplingConfig(), stop) for each in prompts]


def compare(session: Session, requests: list[Request]) -> dict[str, Any]:
    """Tokens that differ from plain decoding alone, by arm."""
    target = session.engine.target
    plain = Engine(target, None, FullSchedule())
    alone, _ = decode(plain, requests, 1)
    plain.close()
    row: dict[str, Any] = {"tokens": sum(map(len, alone)), "distinct": len(set(alone)), "arms": {}}
    for arm in arms(session):
        engine = Engine(target, arm.drafter, arm.scheduler)
        texts, kept = decode(engine, requests, arm.at_once)
        engine.close()
        pairs = [
            two for texts_ in zip(texts, alone, strict=True) for two in zip(*texts_, strict=True)
        ]
        differing = sum(a != b for a, b in pairs)
        row["arms"][f"{arm.name}, {arm.at_once} at once"] = {"differing": differing, "kept": kept}
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--max-tokens", type=int, default=320, help="of an answer")
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which it stops")
    parser.add_argument("--dtype", choices=("auto", "float32"), default="auto")
    parser.add_argument("--progress", type=Path, default=Path("deepseek-v4-identity.jsonl"))
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lines = chosen.progress.read_text("utf-8").splitlines() if chosen.progress.exists() else []
    rows = [json.loads(line) for line in lines]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), rope_scaling={"type": "yarn"} | YARN)
        files = PairFiles("toy", Path(folder), Path(folder))
        config = EngineConfig(schedule=ScheduleConfig("full"), max_requests=AT_ONCE)
        runtime = RuntimeConfig("cpu", chosen.dtype)
        session = follow(open_session(files, runtime, config))
        while sum(row["tokens"] for row in rows) < chosen.tokens:
            if time.perf_counter() - start > chosen.seconds:
                return 0
            rows.append(compare(session, asks(len(rows), chosen.max_tokens)))
            with chosen.progress.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(summed(rows), f"{time.perf_counter() - start:.0f} s", flush=True)
    found = summed(rows)
    if chosen.json:
        command = shlex.join(["python", "benchmarks/deepseek_v4_identity.py", *sys.argv[1:]])
        settings = {"max_tokens": chosen.max_tokens, "dtype": session.runtime.dtype}
        write_document(chosen.json, {**found, "settings": settings, **provenance(command)})
    return 1 if found["differing"] else 0


if __name__ == "__main__":
    sys.exit(main())
