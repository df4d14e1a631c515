"""A bench report as a short table."""

from dspark.bench.report import BenchReport, Difference, Figure, PositionAcceptance
from dspark.plural import counted
from dspark_cli.output.tables import wrapped


def bench_table(report: BenchReport) -> str:
    lines = [
        f"{'tokens per second':20}{'plain':>14}{'dspark':>14}{'speed-up':>12}",
        *_rows("decode", report.plain.decode, report.dspark.decode, report.speedup),
        *_rows(
            "end to end",
            report.plain.end_to_end,
            report.dspark.end_to_end,
            report.end_to_end_speedup,
        ),
        "",
        f"accepted length τ {report.tau:.2f} · {report.verified_per_round:.1f} verified per round",
        *_parked(report),
        *_categories(report),
        "",
        *_positions(report.acceptance_by_position),
        "",
        wrapped(verdict(report)),
    ]
    return "\n".join(lines)


def _parked(report: BenchReport) -> list[str]:
    if not report.parked:
        return []
    return [f"drafting was parked in {report.parked:.0%} of rounds: it did not pay"]


def partial_line(report: BenchReport) -> str:
    trials, prompts = counted(report.trials, "trial"), counted(report.prompts, "prompt")
    return f"interrupted: these are the figures of {trials} over {prompts}"


def _rows(name: str, plain: Figure, dspark: Figure, ratio: Figure) -> list[str]:
    return [
        f"{name:20}{plain.median:14.1f}{dspark.median:14.1f}{ratio.median:11.2f}×",
        f"{'  lowest–highest':20}{_spread(plain, 1, 14)}{_spread(dspark, 1, 14)}"
        f"{_spread(ratio, 2, 12)}",
    ]


def _spread(figure: Figure, digits: int, width: int) -> str:
    return f"{figure.low:.{digits}f}–{figure.high:.{digits}f}".rjust(width)


def _categories(report: BenchReport) -> list[str]:
    rows = ((each, counted(each.prompts, "prompt")) for each in report.categories)
    return [
        f"  {each.category:18}{prompts:>11}  τ {each.tau:.2f}  {each.speedup:.2f}×"
        for each, prompts in rows
    ]


def _positions(positions: tuple[PositionAcceptance, ...]) -> list[str]:
    header = f"{'draft':>5}{'accepted / verified':>22}{'rate':>7}{'once reached':>15}"
    return [header] + [
        f"{each.position:5}{f'{each.accepted} / {each.verified}':>22}{each.rate:7.0%}"
        f"{each.conditional_rate:15.0%}"
        for each in positions
    ]


def verdict(report: BenchReport) -> str:
    if report.is_identical is None:
        return "output: sampled without a seed, so not compared token by token"
    if report.difference is None:
        prompts = "the prompt" if report.prompts == 1 else f"all {report.prompts:,} prompts"
        return f"output: identical to plain decoding on {prompts}"
    return (
        f"output: differs from plain decoding on {report.differing_prompts} of "
        f"{counted(report.prompts, 'prompt')}, {describe_difference(report.difference)}"
    )


def describe_difference(difference: Difference) -> str:
    plain = "the end" if difference.plain_token is None else f"{difference.plain_token}"
    other = "the end" if difference.dspark_token is None else f"{difference.dspark_token}"
    gap = "" if difference.logit_gap is None else f", logit gap {difference.logit_gap:.4g}"
    return (
        f"first in prompt {difference.prompt + 1} at new token {difference.position + 1}: "
        f"{other} instead of {plain}{gap}"
    )
