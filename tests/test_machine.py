"""What is told of this machine, against what psutil and the operating system say themselves."""

import shutil

import psutil
import pytest

from dspark import machine


def test_memory_is_that_of_this_machine():
    assert machine.total_memory("cpu") == psutil.virtual_memory().total
    assert 1 << 20 < machine.free_memory("cpu") < machine.total_memory("cpu")


def test_a_disk_is_that_on_which_a_folder_would_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usage = type(shutil.disk_usage("/"))(3, 2, 1)
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage)
    assert machine.free_disk(tmp_path / "not" / "there") == 1
    assert machine.free_disk(machine.Path("relative")) == 1
    assert asked == [tmp_path, tmp_path]


@pytest.mark.parametrize(
    ("told", "num_bytes", "text"),
    [
        (machine.gigabytes, 1_250_000_000, "1.2 GB"),
        (machine.megabytes, 1_234_567_890, "1,235 MB"),
        (machine.gibibytes, 3 << 29, "1.50 GiB"),
    ],
)
def test_bytes_in_words(told, num_bytes, text):
    assert told(num_bytes) == text


def test_versions_of_what_is_not_installed_are_none(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("pytest", "no-such-package"))
    versions = machine.describe_versions()
    assert versions["pytest"] == pytest.__version__ and versions["no-such-package"] is None
