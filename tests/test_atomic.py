"""What dspark writes appears whole, with the mode that the umask says, or shared folders break."""

import json
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from dspark.atomic import new_folder, replacing
from dspark.bench.document import write_document
from dspark.checkpoints.convert import convert_head
from dspark.engine.schedule.sps_profile import SpsTable
from dspark.hub import register
from tests.checkpoints import writers


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}


def test_a_replaced_file_has_the_umasks_mode(umask, tmp_path):
    path = tmp_path / "file"
    for content in ("old", "new"):
        with replacing(path) as partial:
            partial.touch(mode=0o600)
            partial.write_text(content)
        path.chmod(0o777 if content == "old" else path.stat().st_mode)
    assert path.read_text() == "new"
    assert modes(tmp_path) == {"file": 0o666 & ~umask}
    assert os.umask(umask) == umask  # nobody's umask is changed


def test_where_the_system_does_not_tell_the_umask_it_is_asked(umask, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *args, **kwargs: "Name:\tpython\n")
    with replacing(tmp_path / "file") as partial:
        partial.touch(mode=0o600)
    assert modes(tmp_path) == {"file": 0o666 & ~umask}
    assert os.umask(umask) == umask


@pytest.mark.parametrize("layout", ["deepspec", "speculators"])
def test_a_converted_head(umask, tmp_path, layout):
    source = writers.write_specforge(tmp_path / "source")
    convert_head(source, tmp_path / "out", layout)
    found = modes(tmp_path / "out")
    assert set(found) == {"config.json", "model.safetensors"}
    assert set(found.values()) == {0o666 & ~umask}


def test_what_is_small(umask, tmp_path, tiny_llama_dir, monkeypatch):
    monkeypatch.setenv("DSPARK_HOME", str(tmp_path))
    register("mine", str(tiny_llama_dir), None)
    write_document(tmp_path / "figures.json", {"a": 1})
    SpsTable((1,), (0.1,), (1,), (0.1,)).save(tmp_path / "sps.json")
    found = modes(tmp_path)
    names = ("pairs.json", "figures.json", "sps.json")
    assert {found[name] for name in names} == {0o666 & ~umask}
    assert json.loads((tmp_path / "pairs.json").read_text())["mine"]["target"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_new_folder_appears_whole_or_not_at_all(tmp_path, fails):
    left = tmp_path / ".model.tmp"
    left.mkdir()
    (left / "half").touch()  # by a writer that was killed
    with suppress(ValueError), new_folder(tmp_path / "model") as folder:
        assert not [*folder.iterdir()] and not (tmp_path / "model").exists()
        (folder / "weights").touch()
        if fails:
            raise ValueError
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert sorted(found) == ([] if fails else ["model", "model/weights"])


def test_whoever_writes_and_renames_uses_the_helper():
    """But for downloads, which begin as files that the umask has made, and for the kernels, which
    are below it."""
    root = Path(__file__).parents[1]
    folders = ("dspark", "dspark_cli", "tui", "benchmarks", "recipes")
    files = [path for folder in folders for path in (root / folder).rglob("*.py")]
    moves = re.compile(r"os\.(replace|rename)\(|(partial|part|temporary)\.(replace|rename)\(")
    renaming = {path for path in files if moves.search(path.read_text("utf-8"))}
    assert {path.relative_to(root).as_posix() for path in renaming} == {
        "dspark/atomic.py",
        "dspark/bench/suites.py",
        "dspark/hub/sources/hf_download.py",
        "dspark/hub/sources/pypi_wheel.py",
    }
