"""The plan of a pull, with the verdict whether it fits, as text or as one JSON object."""

from typing import TYPE_CHECKING, Any

import typer

from dspark_cli.errors import ExitCode
from dspark_cli.output.facts import print_json, size_or_unknown, size_text
from dspark_cli.output.tables import Column, print_facts, print_table

if TYPE_CHECKING:
    from dspark.hub import PullPlan

COLUMNS = (Column("  FILE"), Column("SIZE", is_right=True), Column(""))


def tell_plan(plan: "PullPlan", as_json: bool) -> None:
    """Exit code 1 if it does not fit, so that a script can check."""
    if as_json:
        print_json(_plan_object(plan))
    else:
        _print_plan(plan)
    if not (plan.fits_disk and plan.fits_memory):
        raise typer.Exit(ExitCode.FAILED)


def _print_plan(plan: "PullPlan") -> None:
    for source in dict.fromkeys(each.source for each in plan.files):
        print(f"from {source}" + " (sizes from dspark's own list)" * (plan.origin == "registry"))
        files = [each for each in plan.files if each.source == source]
        rows = [
            (f"  {each.path}", size_text(each.num_bytes), "" if each.is_missing else "already here")
            for each in files
        ]
        print_table(COLUMNS, rows)
    print()
    there = ", ".join(f"{size_text(room.total)} on {room.device}" for room in plan.rooms)
    print_facts(
        {
            "download": size_text(plan.download_bytes),
            "into": plan.folder,
            "disk": f"{size_text(plan.disk_needed)} needed, {size_text(plan.disk_free)} free"
            + _verdict(plan.fits_disk),
            "memory": f"{size_or_unknown(plan.memory_needed)} needed, {there}"
            + _verdict(plan.fits_memory)
            + (f" with {plan.options}" if plan.options else ""),
        }
    )


def _verdict(fits: bool) -> str:
    return ": fits" if fits else ": does not fit"


def _plan_object(plan: "PullPlan") -> dict[str, Any]:
    from dataclasses import asdict

    verdicts = {"fits_disk": plan.fits_disk, "fits_memory": plan.fits_memory}
    return {**asdict(plan), "download_bytes": plan.download_bytes, **verdicts}
