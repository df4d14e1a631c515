"""`dspark probe`: checks whether a head's files are interpreted the way it was trained."""

import typer

from dspark.config import PairChoice, RuntimeConfig
from dspark.progress import follow
from dspark_cli import options
from dspark_cli.errors import ExitCode
from dspark_cli.loading import find_files, progress_bars
from dspark_cli.output.facts import print_json
from dspark_cli.views.probe import probe_lines

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
    if as_json:
        print_json(report.figures())
    else:
        print("\n".join(probe_lines(report)))
    if report.fault is not None:
        raise typer.Exit(ExitCode.FAILED)
