"""A bench report as headings, sentences, tables and plots, whatever it will be written in.

All of it comes from the JSON document, so that a page can never say more than the file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspark.plural import counted
from dspark_cli.output.svg_plot import bar_plot, line_plot, stacked_plot

Document = Mapping[str, Any]
PARTS = ("draft", "verify", "commit", "host")
PART_NAMES = ("draft", "verify and accept", "commit", "host")

GLOSSARY = (
    ("τ", "mean number of tokens per round: the accepted drafts plus the one the model adds"),
    ("T = 0", "temperature 0: the likeliest token is always taken; higher ones draw at random"),
    ("arm", "one of the ways of decoding that are compared, such as plain or a drafter"),
    ("decode, end to end", "without and with the time that the prompt takes"),
    ("floor", "the least time of a step: that of reading all the model's weights once"),
    ("once reached", "share accepted at a position, of rounds that accepted all drafts before it"),
    ("prefix", "share of rounds that accepted every draft up to a position"),
    ("AUC", "how often an accepted draft had more confidence than a refused one; 0.5 is chance"),
)


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: str
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """The first column is text, the others are figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    svg: str


Block = Heading | Paragraph | Table | Plot


def report_blocks(document: Document) -> Iterator[Block]:
    name = document.get("pair") or document["target"]
    yield Heading(f"{name}: plain decoding and drafts", 1)
    sections = document["sections"]
    yield Paragraph(sections[0]["expect"])
    for notice in document["notices"]:
        yield Paragraph(notice["text"], is_warning=True)
    if document["partial"]:
        yield Paragraph("interrupted: figures cover what was complete", is_warning=True)
    for section in sections:
        yield from section_blocks(section, document["floor"])
    if document["peers"]:
        yield from peer_blocks(document["peers"])
    yield from _provenance(document)
    yield Heading("Words of this page")
    yield Table("", ("", ""), GLOSSARY)


def section_blocks(section: Document, floor: Document | None) -> Iterator[Block]:
    yield Heading(section["condition"]["name"])
    tokens = section["prompt_tokens"]
    yield Paragraph(
        f"{counted(section['prompts'], 'prompt')} of {tokens:.0f} tokens on average, written as: "
        f"{section['prompt_format']}."
    )
    if section["timed"]:
        yield _rates(section)
        yield from _gain_plot(section)
    yield _lengths(section)
    yield from _positions(section)
    if section["timed"]:
        yield from round_blocks(section, floor)
    yield from _reliability(section)


def _rates(section: Document) -> Table:
    plain = section["plain"]
    rows = [("plain", _rate(plain["decode"]), _rate(plain["end_to_end"]), "", "", "")]
    for each in section["drafters"]:
        interval = each["interval"]
        rows.append(
            (
                each["name"],
                _rate(each["decode"]),
                _rate(each["end_to_end"]),
                f"{each['speedup']:.2f} ×",
                "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
                _verdict(each),
            )
        )
    columns = ("arm", "decode", "end to end", "speed-up", "95 % interval", "output")
    return Table("Tokens per second, median (lowest to highest)", columns, tuple(rows))


def _verdict(drafter: Document) -> str:
    if drafter["identical"] is None:
        return "not compared"
    differing = drafter["differing_prompts"]
    return "identical" if drafter["identical"] else f"differs on {counted(differing, 'prompt')}"


def _gain_plot(section: Document) -> Iterator[Plot]:
    drafters = section["drafters"]
    groups = [each["category"] for each in drafters[0]["categories"]]
    series = {d["name"]: [c["speedup"] for c in d["categories"]] for d in drafters}
    yield Plot("Speed-up by kind of prompt", bar_plot(groups, series, "times plain", 1.0))


def _lengths(section: Document) -> Table:
    categories = [each["category"] for each in section["drafters"][0]["categories"]]
    rows = [
        (
            each["name"],
            *(f"{category['tau']:.2f}" for category in each["categories"]),
            f"{each['tau']:.2f}",
            f"{each['verified_per_round']:.2f}",
            f"{each['parked']:.0%}",
        )
        for each in section["drafters"]
    ]
    columns = ("drafter", *categories, "all rounds", "verified per round", "parked")
    return Table("Accepted length τ", columns, tuple(rows))


def _positions(section: Document) -> Iterator[Block]:
    rows, curves = [], {}
    for each in section["drafters"]:
        places = each["acceptance_by_position"]
        for place in places:
            rows.append(
                (
                    f"{each['name']}, draft {place['position']}",
                    f"{place['accepted']:,} of {place['reached']:,}",
                    f"{place['conditional_rate']:.1%}",
                    f"{place['accepted']:,} of {place['verified']:,}",
                    f"{place['rate']:.1%}",
                )
            )
        curves[f"{each['name']}, once reached"] = [
            (place["position"], place["conditional_rate"]) for place in places if place["reached"]
        ]
        curves[f"{each['name']}, prefix"] = [
            (place["position"], place["rate"]) for place in places if place["verified"]
        ]
    columns = ("position", "accepted of reached", "once reached", "accepted of verified", "prefix")
    yield Table("Acceptance by position", columns, tuple(rows))
    if any(curves.values()):
        yield Plot("Acceptance by position", line_plot(curves, "position", "share"))


def round_blocks(section: Document, floor: Document | None) -> Iterator[Block]:
    arms = {"plain": section["plain"]["round"]}
    arms |= {each["name"]: each["round"] for each in section["drafters"]}
    told = {name: each for name, each in arms.items() if each is not None}
    rows = tuple(
        (
            name,
            *(f"{each[part] * 1e3:.2f}" for part in PARTS),
            f"{each['total'] * 1e3:.2f}",
            "" if floor is None else f"{each['total'] / floor['seconds']:.2f}",
            f"{each['rounds']:,}",
        )
        for name, each in told.items()
    )
    columns = ("arm", *PART_NAMES, "round", "times the floor", "rounds")
    yield Table("Milliseconds of a round", columns, rows)
    if floor is not None:
        yield Paragraph(
            f"The floor, {floor['seconds'] * 1e3:.2f} ms, is the time to read the model's "
            f"{floor['weight_bytes'] / 1e6:,.0f} MB of weights once at "
            f"{floor['bytes_per_second'] / 1e9:.1f} GB/s, the fastest that was measured here."
        )
    bars = {name: [each[part] * 1e3 for part in PARTS] for name, each in told.items()}
    line = None if floor is None else floor["seconds"] * 1e3
    yield Plot("Where a round's time goes", stacked_plot(bars, PART_NAMES, "ms", line))


def _reliability(section: Document) -> Iterator[Block]:
    for each in section["drafters"]:
        positions = each["reliability"]
        if not positions:
            continue
        rows = tuple(
            (
                f"{number}",
                f"{place['ece']:.3f}",
                f"{place['noise']:.3f}",
                "" if place["auc"] is None else f"{place['auc']:.3f}",
                f"{sum(b['rounds'] for b in place['bins']):,}",
            )
            for number, place in enumerate(positions, start=1)
        )
        columns = ("position", "calibration error", "of a perfect head", "AUC", "rounds")
        yield Table(f"Reliability of {each['name']}'s confidences", columns, rows)
        curves = {
            f"draft {number}": [(b["survival"], b["accepted"]) for b in place["bins"]]
            for number, place in enumerate(positions, start=1)
        }
        svg = line_plot(
            curves, "predicted", "observed survival", has_diagonal=True, x_range=(0.0, 1.0)
        )
        yield Plot(f"Reliability of {each['name']}'s confidences", svg)


def peer_blocks(peers: Document) -> Iterator[Block]:
    yield Heading("Other engines on the same weights")
    yield Paragraph(
        f"Greedy, in turns with ours, each in a process of its own. {peers['best']} is the fastest."
    )
    rows = tuple(
        (
            each["name"],
            _rate(each["decode"]),
            _rate(each["end_to_end"]),
            _share(each["like_its_plain"], each["prompts"]),
            _share(each["like_our_plain"], each["prompts"]),
        )
        for each in (*peers["ours"], *peers["engines"])
    )
    columns = ("program", "decode", "end to end", "like its own plain text", "like our plain text")
    yield Table("Tokens per second, median (lowest to highest)", columns, rows)


def _share(same: int | None, prompts: int) -> str:
    return "" if same is None else f"{same} of {prompts}"


def _provenance(document: Document) -> Iterator[Block]:
    settings, prompts = document["settings"], document["prompt_set"]
    yield Heading("How this was measured")
    facts: dict[str, Any] = {
        "command": document["command"],
        "date": document["date"],
        "trials, most new tokens": f"{settings['trials']}, {settings['max_tokens']}",
        "device, number format": f"{settings['device']}, {settings['dtype']}",
        "prompts": f"{prompts['prompts']} of {prompts['name']} ({prompts['source']})",
        "their revision": prompts["revision"],
        "their licence": prompts["licence"],
        "their wording": prompts["wording"],
        **{f"revision of the {name}": each for name, each in document["revisions"].items()},
        **document["machine"],
        **{f"version of {name}": each for name, each in document["versions"].items()},
        "raw rounds": document["rounds"],
    }
    rows = tuple((name, str(value)) for name, value in facts.items() if value is not None)
    yield Table("", ("", ""), rows)


def _rate(figure: Document) -> str:
    low, high = figure["low"], figure["high"]
    return f"{figure['median']:.1f} ({low:.1f} to {high:.1f})"


def tables_of(blocks: Sequence[Block]) -> list[Table]:
    return [each for each in blocks if isinstance(each, Table)]
