"""The files of a bench report: JSON, HTML, Markdown."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark.atomic import replacing
from dspark.errors import InputError


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where a report goes, besides the terminal."""

    json_file: Path | None
    html: Path | None
    markdown: Path | None
    as_json: bool

    @property
    def has_pages(self) -> bool:
        return self.html is not None or self.markdown is not None

    def check(self) -> None:
        """Before anything is measured."""
        named = {"--output": self.json_file, "--html": self.html, "--markdown": self.markdown}
        for option, path in named.items():
            if path is not None and not path.absolute().parent.is_dir():
                raise InputError(
                    f"there is no folder for {path}", f"Make it first, or check {option}."
                )

    def write(self, document: dict[str, Any]) -> None:
        """Each whole, or not at all."""
        if self.json_file is not None:
            from dspark.bench.document import write_document

            write_document(self.json_file, document)
        if not self.has_pages:
            return
        from dspark_cli.views.report_blocks import report_blocks
        from dspark_cli.views.report_pages import html_page, markdown_page

        blocks = list(report_blocks(document))
        for path, page in ((self.html, html_page), (self.markdown, markdown_page)):
            if path is not None:
                with replacing(path) as partial:
                    partial.write_text(page(blocks), "utf-8")


def read_report(path: Path, option: str) -> dict[str, Any]:
    """A document of `dspark bench`. Raises InputError."""
    from dspark.bench.document import VERSION

    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror})", f"Check the path given to {option}."
        ) from error
    except ValueError:
        raise InputError(f"{path} is not JSON", f"Check the path given to {option}.") from None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise InputError(
            f"{path} is not a report of this version",
            "Measure it again: dspark bench --output FILE.",
        )
    return document
