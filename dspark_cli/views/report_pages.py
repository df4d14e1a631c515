"""A report's blocks as Markdown, or as one HTML file that needs nothing else."""

from collections.abc import Iterable, Iterator
from html import escape

from dspark_cli.views.report_blocks import Block, Heading, Paragraph, Plot, Table

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .6rem 0 1.2rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .15rem .7rem .15rem 0; text-align: right; border-bottom: 1px solid #8883; }
th:first-child, td:first-child { text-align: left; }
.facts td { text-align: left; overflow-wrap: anywhere; }
.warning { border-left: 4px solid #d55e00; padding: .3rem .8rem; }
figure { margin: .6rem 0 1.4rem; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
.grid { stroke: #8884; } .mark { stroke: currentColor; stroke-width: 1.5; }
"""


def markdown_page(blocks: Iterable[Block]) -> str:
    return "\n\n".join(text for block in blocks for text in _markdown(block)) + "\n"


def _markdown(block: Block) -> Iterator[str]:
    match block:
        case Heading(text, level):
            yield f"{'#' * level} {text}"
        case Paragraph(text, is_warning):
            yield f"> **{_capital(text)}**" if is_warning else text
        case Table(title, columns, rows):
            if title:
                yield f"**{title}**"
            head = [_cells(columns), "|---|" + "---:|" * (len(columns) - 1)]
            yield "\n".join([*head, *map(_cells, rows)])
        case Plot():
            return  # Markdown has no place for it; the HTML page does


def _cells(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def html_page(blocks: Iterable[Block]) -> str:
    """No script, no font, no address that is fetched."""
    blocks = list(blocks)
    title = next(block.text for block in blocks if isinstance(block, Heading))
    body = "\n".join(map(_html, blocks))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text, is_warning):
            kind = ' class="warning"' if is_warning else ""
            return f"<p{kind}>{escape(_capital(text))}</p>"
        case Table(title, columns, rows):
            return _html_table(title, columns, rows)
        case Plot(title, svg):
            return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def _html_table(title: str, columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> str:
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    head = "".join(f"<th>{escape(each)}</th>" for each in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    kind = "" if title else ' class="facts"'
    top = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f"<table{kind}>{caption}{top}<tbody>{body}</tbody></table>"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
