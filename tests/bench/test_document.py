"""The file behind a figure: complete or not there."""

import json
import os

import pytest

from dspark.bench.document import write_document


def test_the_file_is_whole_and_alone(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")
    write_document(path, {"tau": 2.5, "name": "ü"})
    assert json.loads(path.read_text("utf-8")) == {"tau": 2.5, "name": "ü"}
    assert os.listdir(tmp_path) == ["figures.json"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_document(path, {"figure": object()})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["figures.json"]
