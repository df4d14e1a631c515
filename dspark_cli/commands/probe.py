"""`dspark probe`: checks whether a head's files are interpreted the way it was trained."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from dspark.config import PairChoice, RuntimeConfig
from dspark.progress import follow
from dspark_cli import options
from dspark_cli.errors import ExitCode
from dspark_cli.loading import find_files, progress_bars
from dspark_cli.output.facts import print_json
from dspark_cli.views.probe import probe_lines, published_lines

if TYPE_CHECKING:
    from dspark.hub.catalog.pairs import PublishedTau

EXAMPLES = ("dspark probe demo", "dspark probe --target ./my-model --draft ./my-head --json")


def probe(
    pair: options.PairArgument = None,
    pair_option: options.PairOption = None,
    target: options.Target = None,
    draft: options.Draft = None,
    device: options.Device = options.RUNTIME.device,
    dtype: options.DtypeOption = options.RUNTIME.dtype,
    as_json: options.Json = False,
) -> None:
    """Check whether a head's files are interpreted the way the head was trained.

    Exit code 1 if another reading of the files drafts better.
    """
    name = options.one_pair(pair, pair_option, target)
    files = find_files(PairChoice(name, target, draft))
    from dspark.probe.self_test import probe as run_probe

    with progress_bars() as bars:
        report = follow(run_probe(files, RuntimeConfig(device=device, dtype=dtype)), bars.show)
    published = _published(name, target, draft)
    if as_json:
        quoted = None if published is None else asdict(published)
        print_json({**report.figures(), "published": quoted})
    else:
        beside = [] if published is None else published_lines(published, report)
        print("\n".join([*probe_lines(report), *beside]))
    if report.fault is not None:
        raise typer.Exit(ExitCode.FAILED)


def _published(name: str, target: str | None, draft: str | None) -> "PublishedTau | None":
    """Of the pair as it was released; another target or head has none."""
    from dspark.hub import PAIRS

    pair = None if target or draft else PAIRS.get(name)
    return None if pair is None else pair.published
