"""A pair's configs are read once and handed on."""

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dspark.config import EngineConfig, RuntimeConfig, ScheduleConfig
from dspark.engine.session import open_session
from dspark.hub import PairFiles
from dspark.progress import follow

OPENED: Counter[Path] | None = None


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if OPENED is not None and event == "open" and isinstance(arguments[0], str | os.PathLike):
        OPENED[Path(arguments[0])] += 1


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    sys.addaudithook(_count)  # there is no taking it back


def test_each_config_is_read_at_most_twice_beside_transformers(
    tiny_chat_dir: Path, make_tiny_head: Callable[[Path], Path]
) -> None:
    """Of the target's config, transformers itself reads two times: as config and for the
    tokenizer."""
    global OPENED
    head = make_tiny_head(tiny_chat_dir)
    config = EngineConfig(schedule=ScheduleConfig("full"))
    OPENED = Counter()
    try:
        files = PairFiles("tiny", tiny_chat_dir, head)
        follow(open_session(files, RuntimeConfig("cpu", "float32"), config)).close()
        opened = OPENED
    finally:
        OPENED = None
    assert opened[tiny_chat_dir / "config.json"] <= 1 + 2
    assert opened[head / "config.json"] <= 2
