"""A profile as a curve, its knee, and a table of expected gains."""

from typing import Any

from dspark.bench.profile import Profile
from dspark_cli.output.tables import Column, print_table, wrapped
from dspark_cli.output.text_plot import text_plot

COLUMNS = (
    Column("requests", is_right=True),
    Column("plain", is_right=True),
    Column("draft", is_right=True),
    Column("round", is_right=True),
    Column("drafts", is_right=True),
    Column("expected", is_right=True),
    Column(""),
)


def print_profile(profile: Profile) -> None:
    curve = [(rows, 1000 * seconds) for rows, seconds in profile.curve()]
    print("\n".join(text_plot({"one request": curve}, "rows", "milliseconds of a pass")))
    print()
    knee = f"{profile.knee} rows cost at most half as much again as one"
    rates = ", ".join(f"{share:.0%}" for share in profile.survival)
    print(wrapped(f"{knee}; drafts accepted up to each position: {rates}"))
    print()
    if profile.experts is not None:
        print(wrapped(_experts(profile.experts)) + "\n")
    print_table(COLUMNS, _rows(profile))
    if profile.table.is_noisy:
        print(wrapped("\nthe machine was busy: measure again on a quiet one"))


def _experts(figures: dict[str, Any]) -> str:
    brought = ", ".join(f"{each:.0f}" for each in figures["new_experts"])
    text = (
        f"routed experts that each row of a block brings: {brought}; one is "
        f"{figures['expert_bytes'] / 1e6:.2f} MB and takes {1e3 * figures['near_seconds']:.3f} ms"
    )
    if figures["far_share"]:
        far = f"{figures['far_share']:.0%} are not in memory and take "
        text += f"; {far}{1e3 * figures['far_seconds']:.2f} ms"
    return text


def _rows(profile: Profile) -> list[list[str]]:
    return [
        [
            f"{each.requests}",
            *(
                f"{1000 * seconds:.1f} ms"
                for seconds in (each.plain_seconds, each.draft_seconds, each.round_seconds)
            ),
            f"{each.length}",
            f"{each.gain:.2f}×",
            "" if each.pays else "parked",
        ]
        for each in profile.gains
    ]
