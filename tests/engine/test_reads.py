"""The files of a pair are opened once and handed on."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Kind

from dspark import hub
from dspark.config import EngineConfig, RuntimeConfig, ScheduleConfig
from dspark.engine.session import open_session
from dspark.hub import PairFiles
from dspark.hub.paths import HOME_VARIABLE
from dspark.progress import follow
from dspark_cli.main import run
from dspark_kernels.cpu import runtime
from dspark_kernels.cpu.processor import variants
from tests.checkpoints.test_target_files import shard
from tests.targets.test_gguf import write

FULL = EngineConfig(schedule=ScheduleConfig("full"))
OPENED: Counter[Path] | None = None


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if OPENED is not None and event == "open" and isinstance(arguments[0], str | os.PathLike):
        OPENED[Path(arguments[0])] += 1


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    sys.addaudithook(_count)  # there is no taking it back


@contextmanager
def counted() -> Iterator[Counter[Path]]:
    """How often each file is opened: by Python, or by our modules through safetensors, whose opens
    Python does not see."""
    global OPENED
    opened = OPENED = Counter[Path]()
    with pytest.MonkeyPatch.context() as patches:
        for name, module in [*sys.modules.items()]:
            if name.startswith("dspark"):
                _count_library(patches, module, opened)
        try:
            yield opened
        finally:
            OPENED = None


def _count_library(patches: pytest.MonkeyPatch, module: ModuleType, opened: Counter[Path]) -> None:
    for name in ("safe_open", "load_file"):
        if (library := vars(module).get(name)) is not None:

            def call(path: Path, *args: Any, library: Any = library, **options: Any) -> Any:
                opened[Path(path)] += 1
                return library(path, *args, **options)

            patches.setattr(module, name, call)


def weights(folder: Path) -> list[Path]:
    return [*folder.glob("*.safetensors")]


def opens(target: Path, head: Path | None, dtype: str = "float32") -> Counter[Path]:
    with counted() as opened:
        files = PairFiles("tiny", target, head)
        follow(open_session(files, RuntimeConfig("cpu", dtype), FULL)).close()
    return opened


@pytest.mark.parametrize("is_sharded", [False, True], ids=["one file", "shards"])
def test_a_pair_is_opened_file_by_file_once(
    is_sharded: bool,
    tiny_chat_dir: Path,
    make_tiny_head: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    target = Path(shutil.copytree(tiny_chat_dir, tmp_path / "target"))
    if is_sharded:
        shard(target)
    head = make_tiny_head(target)
    opened = opens(target, head)
    once = [each / "config.json" for each in (target, head)]
    once += [target / "generation_config.json", *weights(target), *weights(head)]
    once += [target / "model.safetensors.index.json"] * is_sharded
    assert len(once) == (7 if is_sharded else 5)
    assert {path: opened[path] for path in once} == dict.fromkeys(once, 1)


@pytest.mark.skipif(not variants(), reason="no kernels for this processor")
def test_so_are_the_codes_of_a_gguf(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_cache_folder", tmp_path_factory.getbasetemp() / "kernels")
    write(tmp_path / "model.gguf", "llama", Kind.Q8_0)
    target = hub.resolve_target(str(tmp_path / "model.gguf"))
    opened = opens(target, None, dtype="auto")
    once = [target / "config.json", *weights(target)]
    assert {path: opened[path] for path in once} == dict.fromkeys(once, 1)


def generate(*pair: str) -> Counter[Path]:
    with counted() as opened:
        assert run(("generate", "Hi", *pair, "--max-tokens", "4", "--device", "cpu")) == 0
    return opened


def test_a_command_looks_at_a_pair_before_it_loads_it(
    tiny_chat_dir: Path, make_tiny_head: Callable[[Path], Path]
) -> None:
    """At most two opens: a look at whether all is there and fits, without torch, and the load."""
    head = make_tiny_head(tiny_chat_dir)
    opened = generate("--target", str(tiny_chat_dir), "--draft", str(head))
    for folder in (tiny_chat_dir, head):
        for path in (folder / "config.json", *weights(folder)):
            assert 1 <= opened[path] <= 2, path


@pytest.mark.demo
def test_so_it_does_with_the_demo(demo_files: PairFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(demo_files.target.parents[2]))
    """Whose target is asked for its conversion, too, which stands in the header of its weights."""
    opened = generate()
    assert demo_files.draft is not None
    for folder in (demo_files.target, demo_files.draft):
        for path in (folder / "config.json", *weights(folder)):
            is_asked = path.parent == demo_files.target and path.suffix == ".safetensors"
            assert 1 <= opened[path] <= 2 + is_asked, path
