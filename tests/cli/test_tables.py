"""Tables fit the terminal without breaking a word, at any width that people have."""

import io
import json
import re
from dataclasses import replace

import pytest

from dspark import hub
from dspark.hub.catalog import find
from dspark_cli.output.tables import Column, fitted, table_lines, wrapped
from tests.bench.test_drafters import batched, opened  # noqa: F401  (fixtures)

WIDTHS = ("80", "60")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DSPARK_HOME", str(tmp_path / "store"))


def words_of(text: str) -> set[str]:
    """Those without figures, which may differ between two calls."""
    return {word for word in re.findall(r"\S+", text) if not re.search(r"\d", word)}


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("command", [["list"], ["doctor"], ["show", "qwen3-4b:dflash"]], ids=str)
def test_every_known_pair_fits(dspark, command, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    wide = dspark(*command).out
    monkeypatch.setenv("COLUMNS", columns)
    outcome = dspark(*command)
    assert (outcome.code, outcome.err) == (0, "")
    # a path is one word, which nobody breaks
    lines = [line for line in outcome.out.splitlines() if " /" not in line]
    assert max(map(len, lines)) <= int(columns)
    assert words_of(outcome.out) <= words_of(wide)
    assert not re.search(r"\bNone\b|\d{5,} ?B|\d{7,}", outcome.out)


def test_doctor_has_one_row_for_each_pair(dspark, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    report = json.loads(dspark("doctor", "--json").out)["pairs"]
    table = dspark("doctor").out.split("\npairs\n")[1].split("\n\n")[0].splitlines()
    rows = {line.split()[0]: line.split()[1:3] for line in table[1:]}
    assert rows.keys() == report.keys()
    marks = {True: "✓", False: "✗"}
    for name, facts in report.items():
        assert rows[name] == [marks[facts["fits"]], marks[facts["in_store"]]]


def test_list_begins_with_what_is_here(dspark, monkeypatch, tiny_llama_dir, make_tiny_head):
    far = replace(find.CATALOG.pairs["demo"], name="far", draft=None)
    monkeypatch.setattr(find, "PAIRS", {"far": far})
    head = make_tiny_head(tiny_llama_dir)
    hub.register("mine", str(tiny_llama_dir), str(head))
    listed = json.loads(dspark("list", "--json").out)["pairs"]
    assert [each["name"] for each in listed] == ["mine", "far"]
    size = hub.folder_bytes(tiny_llama_dir) + hub.folder_bytes(head)
    assert listed[0]["stored_bytes"] == size > 0
    _, *rows = dspark("list").out.splitlines()
    assert rows[0].startswith("mine") and " 0 B " not in rows[0]
    assert head.name in "".join("".join(rows).split())  # wherever the line breaks


def test_a_comparison_fits(batched, capsys, monkeypatch):  # noqa: F811
    from dspark_cli.views.comparison import print_comparison

    for columns in WIDTHS:
        monkeypatch.setenv("COLUMNS", columns)
        print_comparison(batched)
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= int(columns)
        assert "HumanEval" in out


def test_columns_that_matter_less_go_first():
    columns = [Column("NAME"), Column("SIZE", is_right=True), Column("WHY", wraps=True, rank=1)]
    rows = [("one", "1 B", "because of this and that and much more, which wraps")]
    wide = table_lines(columns, rows, 80)
    assert wide[1] == "one    1 B  because of this and that and much more, which wraps"
    middle = table_lines(columns, rows, 40)
    assert len(middle) == 3 and all(len(line) <= 40 for line in middle)
    assert table_lines(columns, rows, 20) == ["NAME  SIZE", "one    1 B"]


def test_what_is_too_wide_even_so_goes_on_below_the_first_column():
    columns = [Column("head"), *(Column(f"category{i}", is_right=True) for i in range(4))]
    rows = [("ours", "1", "2", "3", "4"), ("theirs", "5", "6", "7", "8")]
    lines = table_lines(columns, rows, 30)
    assert max(map(len, lines)) <= 30
    assert [line.split()[0] for line in lines if line] == ["head", "ours", "theirs"] * 2
    shown = " ".join(lines).split()
    assert [shown.count(cell) for row in rows for cell in row[1:]] == [1] * 8
    assert [shown.count(column.title) for column in columns] == [2, 1, 1, 1, 1]


def test_no_rows_are_a_table_too():
    assert table_lines([Column("NAME"), Column("SIZE")], [], 80) == ["NAME  SIZE"]


def test_lines_are_broken_between_words_at_a_terminal_alone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    text = "a line that is far too long for this terminal\n  short"

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert fitted(text, io.StringIO()) == text
    assert fitted(text, Terminal()).splitlines() == [
        "a line that is far too long",
        "for this terminal",
        "  short",
    ]


def test_text_wraps_between_words_alone():
    assert wrapped("a-long-word-with-hyphens and more", indent="  name  ", width=34) == (
        "  name  a-long-word-with-hyphens\n        and more"
    )


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_bench_fits(dspark, fake_session, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    outcome = dspark("bench", "--trials", "1", "--max-tokens", "5")
    assert outcome.code == 0, outcome.err
    assert max(map(len, outcome.out.splitlines())) <= int(columns)
    assert "identical to plain decoding" in " ".join(outcome.out.split())
