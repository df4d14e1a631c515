"""dspark convert: the new folder on stdout, what was left out on stderr."""

import json

from tests.checkpoints import writers


def test_convert_writes_and_tells(dspark, tmp_path):
    source = writers.write_specforge(tmp_path / "source")
    result = dspark("convert", str(source), str(tmp_path / "out"), "--to", "speculators")
    assert result.code == 0 and result.out.strip() == str(tmp_path / "out")
    assert "left out: embed_tokens.weight" in result.err
    again = dspark("convert", str(source), str(tmp_path / "out"), "--to", "deepspec")
    assert again.code != 0 and "already exists" in again.err
    told = dspark("convert", str(source), str(tmp_path / "b"), "--to", "deepspec", "--json")
    assert json.loads(told.out)["from"] == "SpecForge"
