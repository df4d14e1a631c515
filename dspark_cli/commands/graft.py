"""`dspark graft`: a head for a target, one that exists or one trained on its own answers."""

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dspark.config import Algorithm, GraftConfig, RuntimeConfig, graft_config
from dspark.errors import DSparkError, InputError
from dspark_cli import options
from dspark_cli.errors import ExitCode
from dspark_cli.graft_attach_view import attach_head, keep_trained, training_options
from dspark_cli.graft_lines import say
from dspark_cli.graft_plan import plan_lines
from dspark_cli.loading import PairChoice, find_files

if TYPE_CHECKING:
    from dspark.graft.run import GraftRun
    from dspark_cli.graft_view import LiveView, PlainView

DEFAULTS = GraftConfig()


def graft(
    context: typer.Context,
    base: Annotated[
        str, typer.Option(metavar="PATH|ID|ALIAS", help="The target to graft a head on.")
    ] = options.DEFAULT_PAIR,
    train: Annotated[
        bool,
        typer.Option(
            "--train", help="Train a head even where one fits; any option of training says so too."
        ),
    ] = False,
    attach: Annotated[
        str | None,
        typer.Option(metavar="HEAD", help="Attach this head, a folder or a hub id, untrained."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the pair is called from then on."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Keep a head that the probe finds misread.")
    ] = False,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|DIR|hf:OWNER/NAME[:SPLIT]|self[:N]",
            help="Prompts from .jsonl or .txt files, a data set, or the target itself; repeatable.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse --prompts with a broken line.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the answers are kept; default OUT/answers.jsonl."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the head.")] = Path("head"),
    algo: Annotated[
        Algorithm, typer.Option(help="What to train; loss and block follow from it.")
    ] = DEFAULTS.algorithm,
    steps: Annotated[int, typer.Option(min=1)] = DEFAULTS.steps,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences a step.")] = DEFAULTS.batch_size,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts that a batch is computed in, to save memory.")
    ] = DEFAULTS.accumulate,
    anchors: Annotated[int, typer.Option(min=1, help="Blocks a sequence.")] = DEFAULTS.anchors,
    length: Annotated[int, typer.Option(min=8, help="Tokens a sequence.")] = DEFAULTS.length,
    lr: Annotated[float, typer.Option(min=0.0)] = DEFAULTS.learning_rate,
    distillation: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Weight of the CE against the target's distribution; default: --algo's.",
        ),
    ] = None,
    markov_share: Annotated[
        float, typer.Option(min=0.0, help="Learning rate of the Markov tables, of the others'.")
    ] = DEFAULTS.markov_learning_share,
    position_decay: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Slots over which a slot's weight falls to 1/e; default: --algo's."
        ),
    ] = None,
    block_size: Annotated[
        int | None,
        typer.Option(min=1, help=f"Default: {DEFAULTS.block_size}, of mtp 1.", show_default=False),
    ] = None,
    layers: Annotated[int, typer.Option(min=1)] = DEFAULTS.num_layers,
    intermediate_size: Annotated[
        int | None, typer.Option(min=1, help="Default: the target's.")
    ] = DEFAULTS.intermediate_size,
    kv_heads: Annotated[
        int | None,
        typer.Option(min=1, help="Heads of keys and values; default: the target's."),
    ] = DEFAULTS.num_kv_heads,
    taps: Annotated[
        str | None,
        typer.Option(metavar="L,L,...", help="Tapped layers; default: five, evenly spread."),
    ] = None,
    mask_token: Annotated[
        int | None, typer.Option(min=0, help="Default: an unused token of the tokenizer.")
    ] = DEFAULTS.mask_token_id,
    markov_type: Annotated[
        Literal["none", "vanilla", "gated", "rnn"] | None,
        typer.Option(help="Of dspark; default: vanilla.", show_default=False),
    ] = None,
    markov_rank: Annotated[int, typer.Option(min=1)] = DEFAULTS.markov_rank,
    init: Annotated[
        Literal["target", "random"], typer.Option(help="What the weights start from.")
    ] = DEFAULTS.init,
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="HEAD",
            help="Go on from a head (folder, hub id or alias) in its shape; other shape options "
            "change what can be changed.",
        ),
    ] = None,
    loss_vocabulary: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Loss over the draft vocabulary and N drawn others each step; 0: over all.",
        ),
    ] = DEFAULTS.loss_vocabulary,
    draft_vocabulary: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="With --loss-vocabulary: draft from the data's N most frequent tokens; 0: all.",
        ),
    ] = DEFAULTS.draft_vocabulary,
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="Of the head's products; its weights stay float32."),
    ] = DEFAULTS.precision,
    seed: Annotated[int, typer.Option(min=0)] = DEFAULTS.seed,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on from OUT/training if it is there.")
    ] = True,
    max_answer_tokens: Annotated[int, typer.Option(min=2)] = DEFAULTS.max_answer_tokens,
    answer_temperature: Annotated[float, typer.Option(min=0.0)] = DEFAULTS.answer_temperature,
    answers_at_once: Annotated[
        int, typer.Option(min=1, help="Answers written side by side.")
    ] = DEFAULTS.answers_at_once,
    eval_prompts: Annotated[
        int, typer.Option(min=1, help="Prompts held out of training.")
    ] = DEFAULTS.eval_prompts,
    checkpoint_every: Annotated[int, typer.Option(min=1)] = DEFAULTS.checkpoint_every,
    tap_memory: Annotated[
        float, typer.Option(min=0.0, metavar="GIB", help="Taps kept instead of computed again.")
    ] = DEFAULTS.tap_memory_gib,
    tap_cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Taps kept on disk too; its size is told first."),
    ] = None,
    full_head: Annotated[
        bool,
        typer.Option(
            "--full-head/--lean-head",
            help="Store the base's embedding and output head too, as other programs want them.",
        ),
    ] = True,
    measure: Annotated[
        bool,
        typer.Option("--measure/--no-measure", help="Measure the speed-up at the end, and judge."),
    ] = True,
    licence: Annotated[
        str, typer.Option(metavar="ID", help="Of the head, for its model card; as in mit.")
    ] = "unknown",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print plan, memory, disk and time, and train nothing."),
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Plain lines instead of the live view of a terminal.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="With --dry-run or a head attached: one JSON object."),
    ] = False,
    device: options.Device = options.RUNTIME.device,
    dtype: options.DtypeOption = options.RUNTIME.dtype,
) -> None:
    """Attach the released head that fits a target, or train one where none does.

    An attached head is probed first. A training that is stopped goes on with the same command.
    Either way the pair has a name at the end.
    """
    given = training_options(context)
    if attach is not None and (train or given):
        raise InputError(
            f"--attach takes a head as it is, {', '.join(given) or 'train'} is about training one",
            "Give one or the other.",
        )
    runtime = RuntimeConfig(device=device, dtype=dtype)
    if not train and not given:
        is_attached = attach_head(
            base, attach, name=name, runtime=runtime, is_forced=force, as_json=as_json
        )
        if is_attached:
            return
    from dspark.checkpoints.heads import read_draft_config
    from dspark.graft.attach import check_name, released_head
    from dspark.graft.job import GraftJob
    from dspark.graft.onward import with_shape_of
    from dspark.graft.report import MEASUREMENT
    from dspark.graft.run import GraftRun
    from dspark.graft.sources import PromptSource
    from dspark.hub.resolve import NO_DRAFT

    if name is not None:
        check_name(name, out)

    config = graft_config(
        algo,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        precision=precision,
        anchors=anchors,
        length=length,
        learning_rate=lr,
        distillation_weight=distillation,
        block_size=block_size,
        num_layers=layers,
        intermediate_size=intermediate_size,
        num_kv_heads=kv_heads,
        taps=_parse_taps(taps),
        mask_token_id=mask_token,
        markov_type=markov_type,
        markov_rank=markov_rank,
        init=init,
        loss_vocabulary=loss_vocabulary,
        draft_vocabulary=draft_vocabulary,
        markov_learning_share=markov_share,
        position_decay=position_decay,
        seed=seed,
        max_answer_tokens=max_answer_tokens,
        answer_temperature=answer_temperature,
        answers_at_once=answers_at_once,
        eval_prompts=eval_prompts,
        checkpoint_every=checkpoint_every,
        tap_memory_gib=tap_memory,
    )
    data = data or out / "answers.jsonl"
    source = PromptSource.parse(prompts or [], config, is_strict=strict)
    if not prompts and not data.exists():
        raise InputError(f"there are no answers in {data}", "Give --prompts FILE or self.")
    files = find_files(replace(_choice(base), draft=init_from or NO_DRAFT))
    if files.draft is not None:
        config = with_shape_of(config, read_draft_config(files.draft), _fields_given(given))
    job = GraftJob(
        base=replace(files, draft=None),
        source=source,
        data=data,
        out=out,
        config=config,
        runtime=runtime,
        init_from=files.draft,
        resume=resume,
        tap_cache=tap_cache,
        full_head=full_head,
        measurement=MEASUREMENT if measure else None,
        released=released_head(base, files.target),
        licence=licence,
        command=shlex.join(["dspark", *sys.argv[1:]]),
    )
    from dspark.graft.plan import draw_plan, measured
    from dspark.graft.ranks import is_first_process

    if not is_first_process():
        if list(GraftRun(job).events()):
            raise typer.Exit(ExitCode.INTERRUPTED)
        return
    plan = draw_plan(job)
    if dry_run:
        plan = measured(job, plan)
        if as_json:
            print(json.dumps(asdict(plan)))
        else:
            print("\n".join(plan_lines(plan)))
        return
    say("\n".join(plan_lines(plan)))
    if not _follow(GraftRun(job), is_plain=plain):
        raise typer.Exit(ExitCode.INTERRUPTED)
    keep_trained(name, base, out)


def _choice(base: str) -> PairChoice:
    from dspark.hub import PAIRS

    return PairChoice(base) if base in PAIRS else PairChoice(base, target=base)


def _fields_given(options: list[str]) -> set[str]:
    """Of GraftConfig, by the names of the options that set them."""
    others = {"layers": "num_layers", "kv_heads": "num_kv_heads", "mask_token": "mask_token_id"}
    return {others.get(name, name) for name in options}


def _parse_taps(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--taps {text} is no list of layers", "As in --taps 1,8,15.") from None


def _follow(run: "GraftRun", *, is_plain: bool) -> bool:
    """Tell on stderr how it goes; False where it was stopped."""
    from dspark.graft.job import Stopped
    from dspark_cli.graft_view import open_view

    with open_view(run.job.config, is_plain=is_plain) as view, _stopping_on_interrupt(run, view):
        for event in run.events():
            view.tell(event)
            if isinstance(event, Stopped):
                return False
    _draw(run.job.out)
    say(f"model card: {run.job.out / 'README.md'}")
    return True


def _draw(out: Path) -> None:
    """The head is done: a missing picture is no failure."""
    from dspark.graft.plots import draw_run

    try:
        say(f"plots: {', '.join(str(path) for path in draw_run(out))}")
    except DSparkError as error:
        say(f"{error.message}; {error.hint}")


@contextmanager
def _stopping_on_interrupt(run: "GraftRun", view: "PlainView | LiveView") -> Iterator[None]:
    """The first Ctrl+C lets the step under way finish and be saved; a second one does not wait."""

    def stop(*_: object) -> None:
        view.stopping()
        run.stop()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
