"""From names to files: what is in the store, what is fetched, what is replaced."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from dspark.config import PairChoice
from dspark.errors import DownloadError, UnknownNameError
from dspark.events import FetchProgress
from dspark.hub.catalog.pairs import PairFiles
from dspark_cli.loading import find_files, progress_bars

STORED = PairFiles("demo", Path("/store/target"), Path("/store/draft"))


@pytest.fixture
def hub(monkeypatch):
    """A store that is empty until fetched."""
    fetched = []

    def fetch(name):
        if name != "demo":
            raise UnknownNameError(f"no pair is called {name!r}", "Did you mean demo?")
        yield FetchProgress("model", 1, None)
        yield FetchProgress("model", 2, 2)
        fetched.append(name)

    monkeypatch.setattr("dspark.hub.locate", lambda name: STORED if fetched else None)
    monkeypatch.setattr("dspark.hub.fetch", fetch)
    monkeypatch.setattr("dspark.hub.resolve_target", lambda name: Path("/own") / name)
    monkeypatch.setattr(
        "dspark.hub.resolve_draft", lambda name: None if name == "none" else Path("/own") / name
    )
    return fetched


def test_a_missing_pair_is_fetched_once(hub):
    assert find_files(PairChoice("demo")) == STORED
    assert find_files(PairChoice("demo")) == STORED
    assert hub == ["demo"]


def test_a_draft_of_ones_own_replaces_the_pairs(hub):
    assert find_files(PairChoice("demo", draft="head")).draft == Path("/own/head")
    assert find_files(PairChoice("demo", draft="none")).draft is None


def test_a_target_of_ones_own_needs_no_pair(hub):
    files = find_files(PairChoice("demo", target="model", draft="head"))
    assert files == PairFiles("model", Path("/own/model"), Path("/own/head"))
    assert find_files(PairChoice("demo", target="model")).draft is None
    assert hub == []


def test_an_unknown_name_goes_through(hub):
    with pytest.raises(UnknownNameError):
        find_files(PairChoice("demos"))


def test_a_failed_download_goes_through(hub, monkeypatch):
    def fetch(name):
        yield FetchProgress("model", 1, 2)
        raise DownloadError("the network is gone")

    monkeypatch.setattr("dspark.hub.fetch", fetch)
    with pytest.raises(DownloadError):
        find_files(PairChoice("demo"))


def test_a_bench_shows_the_time_that_is_left():
    console = Console(width=100, file=io.StringIO())
    with progress_bars(has_time_left=True) as bars:
        bars.update("bench", 0, 10)
        bars.update("bench", 5, 10, "trial 1 plain")
        console.print(bars._progress)
    shown = console.file.getvalue()
    assert "trial 1 plain" in shown and "5/10" in shown
    assert re.search(r"-:--:--|\d:\d\d:\d\d", shown)
