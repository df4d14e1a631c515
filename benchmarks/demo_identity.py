"""50,000 greedy tokens of the demo pair: the same with drafts, schedules and company.

python benchmarks/demo_identity.py --json benchmarks/results/demo-identity-cpu.json

Prompts are stretches of our own documentation. Each batch of eight is answered plainly, one request
at a time, then by every arm; --progress keeps what is done, so that a run that was interrupted goes
on where it was. Needs the demo pair (dspark pull demo).
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from dspark import hub
from dspark.bench.document import provenance, write_document
from dspark.config import EngineConfig, RuntimeConfig, SamplingConfig, ScheduleConfig, StopConfig
from dspark.engine.loop import Engine
from dspark.engine.request import Request
from dspark.engine.schedule.policies import FullSchedule, Scheduler, SpsSchedule, ThresholdSchedule
from dspark.engine.schedule.sps_profile import SpsTable
from dspark.engine.session import Session, open_session
from dspark.events import Finished, Round
from dspark.progress import follow

ROOT = Path(__file__).parents[1]
TEXTS = ("README.md", "docs/*.md", "CHANGELOG.md", "CONTRIBUTING.md")
AT_ONCE = 8
# verifying eight rows costs twice as much as one: whole blocks, parts and none are all chosen
TABLE = SpsTable(
    rows=(1, 8, 64), verify_seconds=(1.0, 2.0, 8.0), requests=(1,), draft_seconds=(0.3,)
)


class Arm(NamedTuple):
    name: str
    scheduler: Scheduler | None  # None: no drafts
    at_once: int


def arms() -> list[Arm]:
    schedules = {"whole blocks": FullSchedule, "threshold": lambda: ThresholdSchedule(0.5)}
    schedules |= {"by cost": lambda: SpsSchedule(TABLE)}
    found = [Arm("plain", None, count) for count in (3, 8)]
    for name, make in schedules.items():
        found += [Arm(name, make(), count) for count in (1, 3, 8)]
    return found


def batches(session: Session, max_tokens: int) -> Iterator[list[Request]]:
    """Prompts of 20 to 195 tokens, so that the requests of a batch differ in length."""
    texts = [path for pattern in TEXTS for path in sorted(ROOT.glob(pattern))]
    ids = [i for path in texts for i in session.tokenizer.encode(path.read_text(encoding="utf-8"))]
    stop = StopConfig(max_tokens=max_tokens, ignore_stop_tokens=True)
    requests, start = [], 0
    while start + 200 < len(ids):
        size = 20 + 25 * (len(requests) % AT_ONCE)
        requests.append(Request(tuple(ids[start : start + size]), SamplingConfig(), stop))
        start += size
        if len(requests) == AT_ONCE:
            yield requests
            requests = []


def decode(engine: Engine, asks: Sequence[Request], at_once: int) -> tuple[list[Any], int]:
    """Texts, and how many drafts were kept on the way."""
    texts, kept = [], 0
    for first in range(0, len(asks), at_once):
        done = {}
        for event in engine.run(asks[first : first + at_once]):
            if isinstance(event, Finished):
                done[event.request_id] = event.token_ids
            if isinstance(event, Round):
                kept += event.accepted
        texts += [done[request_id] for request_id in sorted(done)]
    return texts, kept


def compare(session: Session, asks: Sequence[Request]) -> dict[str, Any]:
    """Tokens that differ from plain decoding alone, by arm."""
    target, drafter = session.engine.target, session.engine.drafter
    plain = Engine(target, None, FullSchedule())
    alone, _ = decode(plain, asks, 1)
    plain.close()
    row: dict[str, Any] = {"tokens": sum(map(len, alone)), "distinct": len(set(alone)), "arms": {}}
    for arm in arms():
        engine = Engine(target, arm.scheduler and drafter, arm.scheduler or FullSchedule())
        texts, kept = decode(engine, asks, arm.at_once)
        engine.close()
        differing = sum(
            a != b
            for one, two in zip(texts, alone, strict=True)
            for a, b in zip(one, two, strict=True)
        )
        row["arms"][f"{arm.name}, {arm.at_once} at once"] = {"differing": differing, "kept": kept}
    return row


def summed(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    by_arm = {
        name: {key: sum(row["arms"][name][key] for row in rows) for key in ("differing", "kept")}
        for name in rows[0]["arms"]
    }
    return {
        "tokens": sum(row["tokens"] for row in rows),
        "texts": sum(row["distinct"] for row in rows),
        "differing": sum(arm["differing"] for arm in by_arm.values()),
        "arms": by_arm,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--max-tokens", type=int, default=128, help="of an answer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--progress", type=Path, default=Path("demo-identity.jsonl"))
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    files = hub.locate("demo")
    if files is None:
        sys.exit("run dspark pull demo first")
    config = EngineConfig(schedule=ScheduleConfig("full"), max_requests=AT_ONCE)
    session = follow(open_session(files, RuntimeConfig("cpu"), config))
    lines = chosen.progress.read_text("utf-8").splitlines() if chosen.progress.exists() else []
    rows = [json.loads(line) for line in lines]
    for index, asks in enumerate(batches(session, chosen.max_tokens)):
        if sum(row["tokens"] for row in rows) >= chosen.tokens:
            break
        if index < len(rows):
            continue
        started = time.perf_counter()
        rows.append(compare(session, asks))
        with chosen.progress.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(summed(rows), f"{time.perf_counter() - started:.0f} s", flush=True)
    found = summed(rows)
    print(found)
    if chosen.json:
        command = shlex.join(["python", "benchmarks/demo_identity.py", *sys.argv[1:]])
        settings = {"max_tokens": chosen.max_tokens, "threads": chosen.threads}
        settings["dtype"] = session.runtime.dtype
        write_document(chosen.json, {**found, "settings": settings, **provenance(command)})
    return 1 if found["differing"] else 0


if __name__ == "__main__":
    sys.exit(main())
