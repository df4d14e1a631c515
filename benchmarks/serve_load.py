"""Many clients at one server: no wrong byte, no leak, flat memory.

    python benchmarks/serve_load.py [--clients 64] [--seconds 600] [--pair demo]

Starts `dspark serve`, asks every question once alone and without drafts, then lets the clients ask
them over and over, with drafts: whole and streamed, greedy and seeded, with penalties and
log-probabilities, some leaving in the middle and some sending what is no request. Every answer
must be the one that was given alone. Then the server is killed (-9) in the middle of an answer and
started again: the port is free, the store's files are whole, the answer is the same. Prints one
JSON line a minute and one at the end.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from dspark.hub import home

TOPICS = (
    "rain",
    "bread",
    "a bridge",
    "the moon",
    "Python lists",
    "tea",
    "a river",
    "prime numbers",
)
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.8, "seed": 7},
    {"presence_penalty": 0.6, "frequency_penalty": 0.4},
    {"temperature": 1.0, "seed": 11, "top_p": 0.9, "repetition_penalty": 1.2},
    {"logprobs": True, "top_logprobs": 2},
)
BROKEN = (b"{", b'{"model": "demo"}', b"\xff\xfe", b"[]", b'{"model": "x", "messages": []}')


@dataclass
class Tally:
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    tokens: int = 0


def questions(pair: str) -> list[dict[str, Any]]:
    return [
        {
            "model": pair,
            "messages": [{"role": "user", "content": f"Tell me about {topic}. " * (1 + at % 3)}],
            "max_tokens": 16 + 8 * (at % 4),
            **kind,
        }
        for at, topic in enumerate(TOPICS)
        for kind in KINDS
    ]


async def ask_whole(http: httpx.AsyncClient, body: dict[str, Any]) -> tuple[str, int]:
    answer = await http.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    told = answer.json()
    choice = told["choices"][0]
    # the text and, where asked for, every log-probability to the last bit
    return json.dumps([choice["message"], choice["logprobs"]]), told["usage"]["completion_tokens"]


async def ask_streamed(http: httpx.AsyncClient, body: dict[str, Any], leave_after: int) -> str:
    """The text; cut where the client leaves."""
    parts: list[str] = []
    async with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            parts += [c["delta"].get("content") or "" for c in chunk["choices"]]
            if len(parts) == leave_after:
                break
    return "".join(parts)


async def client(
    http: httpx.AsyncClient,
    number: int,
    asked: list[tuple[dict[str, Any], str]],
    ends_at: float,
    tally: Tally,
) -> None:
    rng = random.Random(number)
    while time.monotonic() < ends_at:
        body, expected = rng.choice(asked)
        text = json.loads(expected)[0]["content"]
        act = rng.random()
        try:
            if act < 0.05:
                answer = await http.post(
                    "/v1/chat/completions",
                    content=rng.choice(BROKEN),
                    headers={"content-type": "application/json"},
                )
                is_right, kind = answer.status_code in (400, 404), "broken"
            elif act < 0.15:
                cut = await ask_streamed(http, body, leave_after=rng.randint(2, 6))
                is_right, kind = text.startswith(cut), "left"
            elif act < 0.5:
                is_right, kind = await ask_streamed(http, body, -1) == text, "streamed"
            else:
                given, tokens = await ask_whole(http, body)
                tally.tokens += tokens
                is_right, kind = given == expected, "whole"
        except (httpx.HTTPError, RuntimeError) as error:
            is_right, kind = False, f"failed: {type(error).__name__} {error}"[:200]
        tally.counts[kind] += 1
        if not is_right:
            tally.wrong.append(kind)


def resident_mib(process_id: int) -> float:
    with open(f"/proc/{process_id}/statm") as facts:
        return int(facts.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def held(http: httpx.AsyncClient) -> int:
    text = (await http.get("/metrics")).text
    return int(float(re.findall(r"^dspark_requests_held (\S+)", text, re.MULTILINE)[0]))


async def run(url: str, process_id: int, settings: argparse.Namespace) -> bool:
    limits = httpx.Limits(max_connections=settings.clients + 8)
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False, limits=limits) as http:
        asked = []
        for body in questions(settings.pair):
            expected, _ = await ask_whole(http, {**body, "dspark": {"plain": True}})
            asked.append((body, expected))
        tally, began = Tally(), time.monotonic()
        ends_at = began + settings.seconds
        clients = [
            asyncio.create_task(client(http, number, asked, ends_at, tally))
            for number in range(settings.clients)
        ]
        memory: list[float] = []
        while time.monotonic() < ends_at:
            await asyncio.sleep(min(settings.seconds / 10, 60))
            memory.append(round(resident_mib(process_id), 1))
            print(json.dumps({"seconds": round(time.monotonic() - began), "mib": memory[-1],
                              "answers": tally.counts.total(), "wrong": len(tally.wrong)}),
                  flush=True)  # fmt: skip
        await asyncio.gather(*clients)
        seconds = time.monotonic() - began
        freed_in = await _until_idle(http)
        after, _ = await ask_whole(http, asked[0][0])
        result = {
            "clients": settings.clients,
            "seconds": round(seconds, 1),
            "answers": dict(tally.counts),
            "wrong": Counter(tally.wrong),
            "tokens_per_second_of_whole_answers": round(tally.tokens / seconds, 1),
            "resident_mib": memory,
            "idle_after_seconds": freed_in,
            "answers_as_before": after == asked[0][1],
        }
        print(json.dumps(result), flush=True)
        return not tally.wrong and after == asked[0][1]


async def _until_idle(http: httpx.AsyncClient) -> float:
    """Seconds until no request is held; the engine itself checks then that no page leaked."""
    began = time.monotonic()
    while await held(http):
        assert time.monotonic() < began + 60, "requests are still held"
        await asyncio.sleep(0.02)
    return round(time.monotonic() - began, 2)


@contextmanager
def serving(pair: str, port: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    command = [sys.executable, "-m", "dspark_cli", "serve", pair, "--port", str(port)]
    server, url = subprocess.Popen(command), f"http://127.0.0.1:{port}"
    try:
        while not is_up(url):
            assert server.poll() is None, "the server ended"
            time.sleep(0.5)
        yield server, url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).text == "ok"
    except httpx.HTTPError:
        return False


async def kill_while_answering(server: subprocess.Popen[bytes], url: str, pair: str) -> str:
    """The answer before; the server ends in the middle of it."""
    body = {**questions(pair)[0], "max_tokens": 100}
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as http:
        before, _ = await ask_whole(http, body)
        await ask_streamed(http, body, leave_after=3)
        again = asyncio.create_task(ask_whole(http, body))
        await asyncio.sleep(0.3)
        server.kill()
        server.wait()
        await asyncio.gather(again, return_exceptions=True)
    return before


async def answer_again(url: str, pair: str) -> str:
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as http:
        return (await ask_whole(http, {**questions(pair)[0], "max_tokens": 100}))[0]


def check_store() -> int:
    """Every JSON file of the store can be read; returns how many. Nothing half-written is left."""
    files = [*home().rglob("*.json")]
    for path in files:
        json.loads(path.read_text("utf-8"))
    return len(files)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--pair", default="demo")
    parser.add_argument("--port", type=int, default=8393)
    settings = parser.parse_args()
    with serving(settings.pair, settings.port) as (server, url):
        is_right = asyncio.run(run(url, server.pid, settings))
        before = asyncio.run(kill_while_answering(server, url, settings.pair))
    num_files = check_store()
    with serving(settings.pair, settings.port) as (_, url):
        is_same = asyncio.run(answer_again(url, settings.pair)) == before
    print(json.dumps({"answers_after_a_kill": is_same, "whole_files_in_the_store": num_files}))
    return 0 if is_right and is_same else 1


if __name__ == "__main__":
    sys.exit(main())
