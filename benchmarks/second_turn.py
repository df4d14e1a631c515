"""How soon a chat's second turn begins, beside its first, over HTTP.

python benchmarks/second_turn.py --json benchmarks/results/second-turn-cpu.json

Starts `dspark serve demo` (dspark pull demo). Each chat begins with a prompt of about 2,000 tokens
that no other chat shares; the second turn repeats it with the answer and asks on. Seconds are from
sending a turn to the first word of its answer, medians over chats, which take turns with each
other: every second turn comes after the first turns of all.
"""

import argparse
import json
import shlex
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))
from dspark.bench.document import provenance, write_document

HERE = Path(__file__).parent
BAR = 0.2  # of the first turn's seconds
WORDS, ANSWER_TOKENS = 1600, 48
PATIENCE_SECONDS = 120.0
Messages = list[dict[str, str]]


def long_text(chat: int) -> str:
    words = (HERE / "everyday_prompts.txt").read_text().split()
    first = 37 * chat
    turned = [*words[first:], *words[:first]] * (1 + WORDS // len(words))
    return f"These are notes number {chat}. " + " ".join(turned[:WORDS]) + "\nWhat are they about?"


def turn(client: httpx.Client, messages: Messages) -> tuple[float, str, dict[str, Any]]:
    """Seconds to the first word, the answer, and its usage."""
    body = {
        "model": "demo",
        "messages": messages,
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first, text, usage, began = 0.0, "", {}, time.perf_counter()
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            new = "".join(each["delta"].get("content") or "" for each in chunk["choices"])
            first = first or (time.perf_counter() - began if new else 0.0)
            text, usage = text + new, chunk.get("usage") or usage
    return first, text, usage


def measured(client: httpx.Client, num_chats: int) -> dict[str, Any]:
    chats: list[Messages] = [[{"role": "user", "content": long_text(k)}] for k in range(num_chats)]
    turn(client, [{"role": "user", "content": "Hi"}])  # not the first passes of all
    firsts, seconds = [], []
    for chat in chats:
        firsts.append(turn(client, chat))
        chat.append({"role": "assistant", "content": firsts[-1][1]})
        chat.append({"role": "user", "content": "Say that in one sentence."})
    seconds = [turn(client, chat) for chat in chats]
    ratios = [later[0] / first[0] for first, later in zip(firsts, seconds, strict=True)]
    return {
        "prompt_tokens": [usage["prompt_tokens"] for _, _, usage in firsts],
        "cached_tokens": [u["prompt_tokens_details"]["cached_tokens"] for _, _, u in seconds],
        "first_turn_seconds": [took for took, _, _ in firsts],
        "second_turn_seconds": [took for took, _, _ in seconds],
        "ratio": statistics.median(ratios),
    }


def serve(port: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "dspark_cli.main", "serve", "demo", "--port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def until_it_answers(client: httpx.Client) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            client.get("/health").raise_for_status()
            return
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chats", type=int, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = serve(port)
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False) as client:
            until_it_answers(client)
            found = measured(client, arguments.chats)
    finally:
        server.terminate()
        server.wait()
    print(json.dumps(found, indent=1))
    print(f"second turn: {found['ratio']:.3f} of the first (bar {BAR})")
    if arguments.json:
        command = shlex.join(["python", *sys.argv])
        write_document(arguments.json, {"second_turn": found, "bar": BAR, **provenance(command)})


if __name__ == "__main__":
    main()
