"""Every file that the documents name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("dspark", "dspark_cli", "tui", "kernels", "tests", "benchmarks", "recipes", "docs")
NAMED = re.compile(r"(?<![\w/.-])((?:[\w-]+/)*[\w-]+\.(?:py|sh|svg|md|toml))(?![\w/])")
GENERIC = {"NAME.py", "NAME_config.py", "model.md", "answer.svg", "figures.md"}  # stand for any


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_are_there(page):
    if page.name == "log.md":
        pytest.skip("tells of what was")
    known = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")}
    known |= {path.name for path in ROOT.glob("*.*")}
    missing = [
        name
        for name in NAMED.findall(page.read_text(encoding="utf-8"))
        if Path(name).name not in GENERIC and not _is_there(name, known)
    ]
    assert missing == []


def _is_there(name, known):
    """A path from the root or from the library's folder; a bare name anywhere."""
    if "/" not in name:
        return name in known
    return any((base / name).exists() for base in (ROOT, ROOT / "dspark", ROOT / "dspark_cli"))
