"""Agents that others wrote, at our server: each completes a small task with a toy's canned answers.

    python benchmarks/agents.py --aider VENV --mini VENV --sdk VENV

A VENV has aider-chat, mini-swe-agent or openai-agents. The toy is a model whose text is known
beforehand: it answers a user with one text and the result of a tool with another. aider edits a
file by its own format, over streamed chats; mini-swe-agent calls its tool through chats, and the
agents SDK through responses. What counts is what the agent did to the file.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))
from dspark import hub
from tests.automaton import chain, write_automaton, write_byte_tokenizer

AFTER_USER, AFTER_TOOL, END = "<|after_user|>", "<|after_tool|>", "<|end|>"
# ends in a mark that says who spoke last, which is all that the toy reads
TEMPLATE = (
    "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    "{% if messages[-1].role == 'tool' %}" + AFTER_TOOL + "{% else %}" + AFTER_USER + "{% endif %}"
)
OLD, NEW = 'def greet():\n    return "hi"\n', 'def greet():\n    return "hello"\n'
EDIT = (
    "Here is the change.\n\ngreet.py\n```python\n<<<<<<< SEARCH\n",
    '    return "hi"\n',
    "=======\n",
    '    return "hello"\n',
    ">>>>>>> REPLACE\n```\n",
)
SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
SDK_TASK = """
import asyncio, sys
from agents import Agent, Runner, function_tool, set_tracing_disabled
set_tracing_disabled(True)
@function_tool
def write(path: str, text: str) -> str:
    open(path, "w").write(text)
    return "written"
agent = Agent(name="Editor", instructions="Edit files.", tools=[write], model="toy")
task = "Make greet() return hello."
async def streamed():
    run = Runner.run_streamed(agent, task)
    async for _ in run.stream_events():
        pass
    return run.final_output
is_streamed = sys.argv[1] == "stream"
print(asyncio.run(streamed()) if is_streamed else Runner.run_sync(agent, task).final_output)
"""


def call(name: str, **arguments: str) -> tuple[str, ...]:
    written = json.dumps({"name": name, "arguments": arguments})
    return ("I will do that.\n<tool_call>\n", written, "\n</tool_call>")


def write_toy(folder: Path, first: Sequence[str], second: Sequence[str]) -> Path:
    """Answers a user with `first`, and a tool with `second`; a token for each part."""
    parts = [part.encode() for part in (*first, *second)]
    ids = write_byte_tokenizer(
        folder, [AFTER_USER, AFTER_TOOL, END], words=parts, eos_token=END, chat_template=TEMPLATE
    )
    follows = chain(ids[AFTER_USER], *(ids[part.encode()] for part in first), ids[END])
    follows |= chain(ids[AFTER_TOOL], *(ids[part.encode()] for part in second), ids[END])
    write_automaton(folder, follows, max(ids.values()) + 1, ids[END])
    config = folder / "config.json"
    stated = json.loads(config.read_text())
    config.write_text(json.dumps({**stated, "max_position_embeddings": 32768}))
    return folder


@contextmanager
def serving(toy: Path, port: int) -> Iterator[str]:
    hub.register("toy", str(toy), None)
    command = [sys.executable, "-m", "dspark_cli", "serve", "toy", "--draft", "lookup"]
    command += ["--port", str(port)]
    server = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        while not _is_up(url):
            assert server.poll() is None, "the server ended"
            time.sleep(0.2)
        yield f"{url}/v1"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).text == "ok"
    except httpx.HTTPError:
        return False


def run(command: Sequence[str | Path], folder: Path, url: str) -> None:
    """In a folder with greet.py, for an OpenAI client at this address."""
    (folder / "greet.py").write_text(OLD)
    place = {"OPENAI_BASE_URL": url, "OPENAI_API_BASE": url, "OPENAI_API_KEY": "none"}
    quiet = {"MSWEA_CONFIGURED": "true", "MSWEA_COST_TRACKING": "ignore_errors"}
    environment = {**os.environ, **place, **quiet, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    has_done = (folder / "greet.py").read_text() == NEW
    print(json.dumps({"agent": Path(command[0]).name, "rc": done.returncode, "edited": has_done}))
    if not has_done:
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n", file=sys.stderr)


def run_aider(venv: Path, folder: Path, port: int) -> None:
    with serving(write_toy(folder / "toy", EDIT, ("Done.",)), port) as url:
        options = ["--no-git", "--yes-always", "--no-check-update", "--no-show-model-warnings"]
        options += ["--analytics-disable", "--map-tokens", "0", "--edit-format", "diff"]
        task = ["--message", "Make greet() return hello.", "greet.py"]
        run([venv / "bin/aider", "--model", "openai/toy", *options, *task], folder, url)


def run_mini(venv: Path, folder: Path, port: int) -> None:
    edit = "sed -i s/hi/hello/ greet.py"
    toy = write_toy(folder / "toy", call("bash", command=edit), (*_done(),))
    with serving(toy, port) as url:
        task = ["-t", "Make greet() return hello.", "-y", "--exit-immediately"]
        run([venv / "bin/mini", "-m", "openai/toy", *task, "-o", folder / "log.json"], folder, url)


def _done() -> tuple[str, ...]:
    text, written, end = call("bash", command=SUBMIT)
    return (f"It is done. {text}", written, f"\n{end}")


def run_sdk(venv: Path, folder: Path, port: int) -> None:
    toy = write_toy(folder / "toy", call("write", path="greet.py", text=NEW), ("It is done.",))
    with serving(toy, port) as url:
        for way in ("whole", "stream"):
            run([venv / "bin/python", "-c", SDK_TASK, way], folder, url)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    agents = {"aider": run_aider, "mini": run_mini, "sdk": run_sdk}
    for name in agents:
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--port", type=int, default=8394)
    settings = parser.parse_args()
    for name, run_agent in agents.items():
        venv = getattr(settings, name)
        if venv is not None:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["DSPARK_HOME"] = f"{folder}/home"
                run_agent(venv.resolve(), Path(folder), settings.port)


if __name__ == "__main__":
    main()
