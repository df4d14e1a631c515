"""Two processes train together through accelerate, the head whole or in shards: the same as one.

They are forked from a server that has torch imported already; gloo carries their gradients.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dspark.errors import InputError
from dspark.graft.train.distributed import SingleProcess, check_shares, join_ranks
from dspark_cli.main import run

pytest.importorskip("accelerate")
linux_only = pytest.mark.skipif(sys.platform == "win32", reason="no gloo over forks")

STEPS = 6
PROMPTS = 10
SECONDS_AT_MOST = 300.0
PARTS = ("--accumulate", "2", "--checkpoint-every", "2")


SHARDS = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def _process(
    arguments: list[str], rank: int, count: int, port: int, settings: dict[str, str]
) -> None:
    """As a launcher starts it."""
    os.environ.update(settings)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if count > 1:
        os.environ.update({name: str(value) for name, value in {**place, **address}.items()})
    sys.exit(run(arguments))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def graft(tiny_chat_dir: Path, tmp_path: Path) -> Callable[..., list[int | None]]:
    """The same command in one or more processes, all killed at a moment; their exit codes."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {n}"}) + "\n" for n in range(PROMPTS)))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dspark_cli.commands.graft", "dspark.graft.run", "accelerate"])

    def start(
        folder: Path,
        count: int,
        *more: str,
        until: Callable[[], bool] = lambda: False,
        settings: dict[str, str] | None = None,
    ) -> list[int | None]:
        sizes = f"--steps {STEPS} --batch-size 4 --anchors 4 --length 120 --block-size 3"
        data = f"--eval-prompts 1 --max-answer-tokens 12 --prompts {prompts} --no-measure"
        head = "--mask-token 200 --markov-rank 8 --intermediate-size 32 --device cpu"
        command = f"graft --train --base {tiny_chat_dir} --out {folder} {sizes} {data} {head}"
        command += " --precision float32"
        port = _free_port()
        processes: list[ForkServerProcess] = []
        for rank in range(count):
            process = context.Process(
                target=_process,
                args=([*command.split(), *more], rank, count, port, settings or {}),
            )
            process.start()
            processes.append(process)
        deadline = time.monotonic() + SECONDS_AT_MOST
        while any(process.is_alive() for process in processes) and not until():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        for process in processes:
            process.kill()
            process.join()
        return [process.exitcode for process in processes]

    return start


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in one process, made by the first test."""
    return tmp_path_factory.mktemp("alone") / "head"


@linux_only
@pytest.mark.parametrize(("settings", "kills"), [({}, 0), (SHARDS, 1)], ids=["whole", "shards"])
def test_two_processes_train_the_head_of_one(
    graft: Callable[..., list[int | None]],
    alone: Path,
    tmp_path: Path,
    settings: dict[str, str],
    kills: int,
) -> None:
    """Only the order differs in which float32 gradients are added, about 1e-6 of them. Adam divides
    a gradient by its own size, so that a step still differs by 1e-6 of itself, except where a
    gradient is nothing but rounding: there it may differ by all of a step. The files are bf16."""
    together = tmp_path / "together"
    if not alone.exists():
        assert graft(alone, 1) == [0]
    two_graft = partial(graft, together, 2, *PARTS, settings=settings)
    for _ in range(kills):
        assert -signal.SIGKILL in two_graft(until=lambda: _lines(together) > 2)
    assert two_graft() == [0, 0], "goes on after a kill"
    assert (together / "answers.jsonl").read_bytes() == (alone / "answers.jsonl").read_bytes()

    one, two = (_state(folder) for folder in (alone, together))
    assert (one["step"], one["tokens"]) == (two["step"], two["tokens"]) == (STEPS, one["tokens"])
    for name, tensor in one["head"].items():
        distance = (two["head"][name] - tensor).norm() / tensor.norm().clamp_min(1e-3)
        assert distance < 1e-4, name
    moments = [state["optimizer"]["state"] for state in (one, two)]
    assert moments[0].keys() == moments[1].keys()
    for index, moment in moments[0].items():
        distance = (moments[1][index]["exp_avg"] - moment["exp_avg"]).norm()
        assert distance <= 1e-3 * moment["exp_avg"].norm(), index
    weights = [load_file(folder / "model.safetensors") for folder in (alone, together)]
    assert weights[0].keys() == weights[1].keys()

    steps = [_steps(folder) for folder in (alone, together)]
    assert [line["step"] for line in steps[1]] == list(range(1, STEPS + 1)), "one writer only"
    for one_line, two_line in zip(*steps, strict=True):
        for name in ("loss", "l1", "tau", "positions", "grad_norm", "learning_rate"):
            assert two_line[name] == pytest.approx(one_line[name], rel=1e-4), name
    assert not [path.name for path in together.rglob("*.tmp")]


def _lines(folder: Path) -> int:
    path = folder / "training" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _state(folder: Path) -> dict:  # type: ignore[type-arg]
    state: dict = torch.load(folder / "training" / "checkpoint.pt", weights_only=True)  # type: ignore[type-arg]
    return state


def _steps(folder: Path) -> list[dict]:  # type: ignore[type-arg]
    lines = (folder / "training" / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == "step"]


def test_one_process_needs_no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert isinstance(join_ranks("cpu"), SingleProcess)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="need accelerate") as caught:
        join_ranks("cpu")
    assert "[train]" in caught.value.hint


def test_shards_of_the_first_kind_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="FSDP") as caught:
        join_ranks("cuda")
    assert "--fsdp_version 2" in caught.value.hint


def test_an_uneven_batch_is_refused() -> None:
    class Three(SingleProcess):
        count = 3

    check_shares([0] * 6, Three())
    with pytest.raises(InputError, match=r"batch of 8 .* by 3 processes") as caught:
        check_shares([0] * 8, Three())
    assert "--batch-size 9" in caught.value.hint
