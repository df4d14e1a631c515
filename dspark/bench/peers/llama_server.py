"""llama.cpp's own server on the same GGUF, one for each way of drafting without a second model."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dspark.bench.peers.arm import Answer, PeerArm
from dspark.errors import DSparkError, InputError
from dspark.lazy_httpx import httpx

if TYPE_CHECKING:
    from httpx import Client

PLAIN = "llama.cpp"
DRAFTS = ("none", "ngram-simple", "ngram-map-k", "ngram-cache")
FOLDER_VARIABLE = "LLAMA_CPP"
STARTS = 120.0  # seconds for a server to be ready
ANSWERS = 600.0  # seconds for an answer


@dataclass(frozen=True, slots=True)
class LlamaServer:
    binary: Path
    model: Path
    threads: int
    context: int = 8192


def find_binary(folder: Path | None = None, name: str = "llama-server") -> Path:
    """In a folder, in LLAMA_CPP, or on the PATH. Raises InputError."""
    stated = folder or os.environ.get(FOLDER_VARIABLE)
    found = str(Path(stated) / name) if stated else shutil.which(name)
    if found is None or not Path(found).is_file():
        raise InputError(
            f"{name} was not found",
            f"Set {FOLDER_VARIABLE} to the folder that holds it, or put it on the PATH; "
            "docs/performance.md shows how to build it.",
        )
    return Path(found)


@contextmanager
def llama_arms(server: LlamaServer, drafts: Sequence[str] = DRAFTS) -> Iterator[list[PeerArm]]:
    with ExitStack() as stack:
        yield [stack.enter_context(_served(server, each)) for each in drafts]


@contextmanager
def _served(server: LlamaServer, drafts: str) -> Iterator[PeerArm]:
    """On a free port of this machine alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = str(server.threads)
    command = [str(server.binary), "-m", str(server.model), "--port", str(port)]
    command += ["-t", threads, "-tb", threads, "-np", "1", "-c", str(server.context)]
    command += ["--no-webui", "--spec-type", drafts]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWERS, trust_env=False)
    name = PLAIN if drafts == "none" else f"{PLAIN} {drafts}"
    try:
        _await(client, process)
        yield PeerArm(name, lambda ids, most: _answer(client, ids, most), PLAIN)
    finally:
        client.close()
        process.terminate()
        process.wait(timeout=30)


def _await(client: "Client", process: "subprocess.Popen[bytes]") -> None:
    ends = time.monotonic() + STARTS
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise DSparkError(
                f"llama-server ended with exit code {process.returncode}",
                "Run it by hand on the same file to see why.",
            )
        try:
            if client.get("/health").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise DSparkError(
        f"llama-server is not ready after {STARTS:.0f} seconds",
        "Run it by hand on the same file to see why.",
    )


def _answer(client: "Client", prompt_ids: Sequence[int], max_tokens: int) -> Answer:
    asked = {"prompt": list(prompt_ids), "n_predict": max_tokens, "temperature": 0.0}
    asked |= {"cache_prompt": False, "return_tokens": True}
    reply = client.post("/completion", json=asked).raise_for_status().json()
    times = reply["timings"]
    return Answer(tuple(reply["tokens"]), times["prompt_ms"] / 1e3, times["predicted_ms"] / 1e3)
