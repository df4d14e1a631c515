"""A worker process that answers lines of JSON with lines of JSON."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dspark.bench.peers.arm import Answer, PeerArm
from dspark.errors import DSparkError

TRANSFORMERS = "dspark.bench.peers.transformers_worker"
STOP_SECONDS = 30.0


@contextmanager
def transformers_arm(folder: Path, device: str, dtype: str) -> Iterator[PeerArm]:
    command = [sys.executable, "-m", TRANSFORMERS, str(folder), device, dtype]
    with worker_arm(f"transformers {dtype}", command) as arm:
        yield arm


@contextmanager
def worker_arm(name: str, command: Sequence[str]) -> Iterator[PeerArm]:
    """An engine without drafts. Raises DSparkError if it does not start or ends too soon."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin is not None and process.stdout is not None
    asked, told = process.stdin, process.stdout

    def answer(prompt_ids: Sequence[int], max_tokens: int) -> Answer:
        asked.write(json.dumps({"prompt_ids": list(prompt_ids), "max_tokens": max_tokens}) + "\n")
        asked.flush()
        reply = _read(told, name, process)
        return Answer(tuple(reply["token_ids"]), reply["prefill_seconds"], reply["decode_seconds"])

    try:
        _read(told, name, process)
        yield PeerArm(name, answer, plain=name)
    finally:
        process.terminate()
        process.wait(timeout=STOP_SECONDS)
        asked.close()
        told.close()


def _read(told: IO[str], name: str, process: "subprocess.Popen[str]") -> dict[str, Any]:
    line = told.readline()
    if not line:
        raise DSparkError(
            f"{name} ended with exit code {process.wait(timeout=STOP_SECONDS)}",
            "Its own message is above. Leave out --against to measure without it.",
        )
    reply: dict[str, Any] = json.loads(line)
    return reply
