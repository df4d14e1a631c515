"""From names to files: what is in the store, what is fetched, what is replaced."""

from pathlib import Path

import pytest

from dspark.errors import DownloadError, UnknownNameError
from dspark.events import FetchProgress
from dspark.hub.pairs import PairFiles
from dspark_cli.loading import find_files
from dspark_cli.naming import PairChoice

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
