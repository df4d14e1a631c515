"""The command that installs an extra is right for a clone and for a package of an index."""

import json
import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from dspark.extras import install_command

PROJECT = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({"url": "file:///a%20b", "dir_info": {"editable": True}}, 'pip install -e "/a b[plots]"'),
        ({"url": "file:///a", "dir_info": {}}, 'pip install "dspark[plots]"'),
        ({"url": "https://a/dspark.whl", "archive_info": {}}, 'pip install "dspark[plots]"'),
        ([], 'pip install "dspark[plots]"'),
        (None, 'pip install "dspark[plots]"'),
    ],
)
def test_it_is_installed_as_dspark_was(origin, command, monkeypatch):
    text = None if origin is None else json.dumps(origin)
    found = SimpleNamespace(read_text=lambda name: text)
    monkeypatch.setattr(metadata, "distribution", lambda name: found)
    assert install_command("plots") == command


def test_without_a_distribution_there_is_still_a_command(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert install_command("train") == 'pip install "dspark[train]"'


def test_every_extra_that_is_named_exists():
    rooms = (Path(__file__).parents[1] / name for name in ("dspark", "dspark_cli"))
    sources = [path.read_text("utf-8") for room in rooms for path in room.rglob("*.py")]
    named = {name for text in sources for name in re.findall(r'install_command\("(\w+)"\)', text)}
    extras = PROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0]
    assert named == {"plots", "datasets", "train", "schema", "web"}
    assert named <= set(re.findall(r"^(\w+) = ", extras, flags=re.MULTILINE))
