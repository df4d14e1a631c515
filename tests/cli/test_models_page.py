"""docs/models.md is what `dspark list --markdown` prints."""

from pathlib import Path

from dspark_cli.models_page import models_markdown

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_is_the_catalogues(tmp_path, monkeypatch) -> None:
    """Whatever is stored here."""
    monkeypatch.setenv("DSPARK_HOME", str(tmp_path))
    assert PAGE.read_text("utf-8") == models_markdown(), "run `dspark list --markdown`"
