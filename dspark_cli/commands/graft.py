"""`dspark graft`: attaches an existing head to a target, or trains one on the target's answers."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dspark.config import GraftConfig, RuntimeConfig
from dspark.errors import DSparkError, InputError
from dspark_cli import graft_options, options
from dspark_cli.errors import ExitCode
from dspark_cli.graft_job import training_job
from dspark_cli.output.tables import say
from dspark_cli.views.attach import (
    attach_head,
    keep_trained,
    tell_attachment,
    training_options,
)
from dspark_cli.views.plan import plan_lines

if TYPE_CHECKING:
    from dspark.graft.job import GraftJob
    from dspark.graft.run import GraftRun
    from dspark_cli.views.graft_live import LiveView, PlainView

EXAMPLES = (
    "dspark graft qwen3-4b",
    "dspark graft ./my-model --attach ./my-head --name mine",
    "dspark graft demo --prompts prompts.txt --steps 2000 --out my-head --dry-run",
)
DEFAULTS = GraftConfig()


def graft(
    context: typer.Context,
    base: graft_options.Base = None,
    base_option: graft_options.BaseOption = None,
    train: graft_options.Train = False,
    attach: graft_options.Attach = None,
    name: graft_options.Name = None,
    force: graft_options.Force = False,
    prompts: graft_options.Prompts = None,
    strict: graft_options.Strict = False,
    data: graft_options.Data = None,
    max_answer_tokens: graft_options.MaxAnswerTokens = DEFAULTS.max_answer_tokens,
    answer_temperature: graft_options.AnswerTemperature = DEFAULTS.answer_temperature,
    answers_at_once: graft_options.AnswersAtOnce = DEFAULTS.answers_at_once,
    eval_prompts: graft_options.EvalPrompts = DEFAULTS.eval_prompts,
    length: graft_options.Length = DEFAULTS.length,
    algo: graft_options.Algo = DEFAULTS.algorithm,
    block_size: graft_options.BlockSize = None,
    layers: graft_options.Layers = DEFAULTS.num_layers,
    intermediate_size: graft_options.IntermediateSize = DEFAULTS.intermediate_size,
    kv_heads: graft_options.KvHeads = DEFAULTS.num_kv_heads,
    taps: graft_options.Taps = None,
    mask_token: graft_options.MaskToken = DEFAULTS.mask_token_id,
    markov_type: graft_options.MarkovType = None,
    markov_rank: graft_options.MarkovRank = DEFAULTS.markov_rank,
    init: graft_options.Init = DEFAULTS.init,
    init_from: graft_options.InitFrom = None,
    distillation: graft_options.Distillation = None,
    loss: graft_options.LossOption = "published",
    position_decay: graft_options.PositionDecay = None,
    position_weights: graft_options.PositionWeights = DEFAULTS.position_weights,
    loss_vocabulary: graft_options.LossVocabulary = DEFAULTS.loss_vocabulary,
    draft_vocabulary: graft_options.DraftVocabulary = DEFAULTS.draft_vocabulary,
    anchors: graft_options.Anchors = DEFAULTS.anchors,
    steps: graft_options.Steps = DEFAULTS.steps,
    batch_size: graft_options.BatchSize = DEFAULTS.batch_size,
    accumulate: graft_options.Accumulate = DEFAULTS.accumulate,
    lr: graft_options.Lr = DEFAULTS.learning_rate,
    markov_share: graft_options.MarkovShare = None,
    optimizer: graft_options.OptimizerOption = DEFAULTS.optimizer,
    average: graft_options.Average = DEFAULTS.average,
    seed: graft_options.Seed = DEFAULTS.seed,
    precision: graft_options.Precision = DEFAULTS.precision,
    device: graft_options.Device = options.RUNTIME.device,
    dtype: graft_options.TargetDtype = options.RUNTIME.dtype,
    resume: graft_options.Resume = True,
    checkpoint_every: graft_options.CheckpointEvery = DEFAULTS.checkpoint_every,
    tap_memory: graft_options.TapMemory = DEFAULTS.tap_memory_gib,
    tap_cache: graft_options.TapCache = None,
    dry_run: graft_options.DryRun = False,
    plain: graft_options.Plain = False,
    out: graft_options.Out = Path("head"),
    full_head: graft_options.FullHead = True,
    measure: graft_options.Measure = True,
    licence: graft_options.Licence = "unknown",
    as_json: graft_options.AsJson = False,
) -> None:
    """Attach the released head that fits a model, or train one if there is none.

    An attached head is probed first.
    A training can be interrupted: re-run the same command to resume.
    The result is saved under a name.
    """
    from dspark.hub.settle import check_known

    base = options.one_pair(base, base_option)
    check_known(base)
    given = training_options(context)
    if attach is not None and (train or given):
        raise InputError(
            f"--attach takes a head as it is, {_named(given) or '--train'} trains one",
            "Give one or the other.",
        )
    runtime = RuntimeConfig(device=device, dtype=dtype)
    if dry_run and not train and attach is None and given == ["dry_run"]:
        if tell_attachment(base, as_json=as_json):
            return
    elif not train and not given:
        is_attached = attach_head(
            base, attach, name=name, runtime=runtime, is_forced=force, as_json=as_json
        )
        if is_attached:
            return
    job = training_job(context.params, base, given)
    _train(job, name, base, is_dry=dry_run, is_plain=plain, as_json=as_json)


def _train(
    job: "GraftJob", name: str | None, base: str, *, is_dry: bool, is_plain: bool, as_json: bool
) -> None:
    from dspark.graft.plan import draw_plan, measured
    from dspark.graft.run import GraftRun
    from dspark.graft.train.distributed import is_first_process

    if not is_first_process():
        if list(GraftRun(job).events()):
            raise typer.Exit(ExitCode.INTERRUPTED)
        return
    plan = draw_plan(job)
    if is_dry:
        plan = measured(job, plan)
        if as_json:
            print(json.dumps(asdict(plan)))
        else:
            print("\n".join(plan_lines(plan)))
        return
    say("\n".join(plan_lines(plan)))
    if not _follow(GraftRun(job), is_plain=is_plain):
        raise typer.Exit(ExitCode.INTERRUPTED)
    keep_trained(name, base, job.out, as_json=as_json)


def _named(parameters: list[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in parameters)


def _follow(run: "GraftRun", *, is_plain: bool) -> bool:
    """Shows the progress on stderr; False if it was stopped."""
    from dspark.graft.job import Stopped
    from dspark_cli.views.graft_live import open_view

    with open_view(run.job.config, is_plain=is_plain) as view, _stopping_on_interrupt(run, view):
        for event in run.events():
            view.tell(event)
            if isinstance(event, Stopped):
                return False
    _draw(run.job.out)
    say(f"model card: {run.job.out / 'README.md'}")
    return True


def _draw(out: Path) -> None:
    """The head is done, so a missing plot is not a failure."""
    from dspark.graft.judge.plots import draw_run

    try:
        say(f"plots: {', '.join(str(path) for path in draw_run(out))}")
    except DSparkError as error:
        say(f"{error.message}; {error.hint}")


@contextmanager
def _stopping_on_interrupt(run: "GraftRun", view: "PlainView | LiveView") -> Iterator[None]:
    """The first Ctrl+C lets the current step finish and be saved; a second one stops at once."""

    def stop(*_: object) -> None:
        view.stopping()
        run.stop()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
