"""`dspark convert`: writes a head in another engine's layout."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dspark.errors import InputError
from dspark_cli import options
from dspark_cli.output.facts import print_json
from dspark_cli.output.tables import say

EXAMPLES = ("dspark convert ./my-head ./for-vllm --to speculators",)

Source = Annotated[
    str,
    typer.Argument(
        metavar="HEAD",
        help="Folder or Hugging Face id of a head, or a pair.",
        autocompletion=options.complete_pair,
    ),
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist yet.")]
To = Annotated[
    Literal["deepspec", "speculators", "dflash"],
    typer.Option(
        "--to",
        help="deepspec; speculators, which vLLM reads; or dflash, that of DFlash 2 and Domino.",
    ),
]
Lender = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="TARGET",
        help="Model whose embedding and output head are stored too, if the head has none.",
    ),
]


def convert(
    source: Source, out: Out, to: To, target: Lender = None, as_json: options.Json = False
) -> None:
    """Write a head in another layout, and list the settings that layout cannot hold."""
    from dspark import hub
    from dspark.checkpoints.convert import convert_head

    head = hub.resolve_draft(source)
    if head is None:
        raise InputError(f"{source} has no head to convert")
    lender = hub.resolve_target(target) if target else None
    converted = convert_head(head, out, to, lender, target or "")
    if as_json:
        facts = {"from": converted.packaging, "to": to, "dropped": list(converted.dropped)}
        print_json({"head": str(out), **facts})
        return
    for each in converted.dropped:
        say(f"left out: {each}")
    print(out)
