"""`dspark graft`: a head for a target, one that exists or one trained on its own answers."""

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dspark.config import GraftConfig, RuntimeConfig, graft_config
from dspark.errors import DSparkError, InputError
from dspark_cli import graft_options, options
from dspark_cli.errors import ExitCode
from dspark_cli.graft_attach_view import (
    attach_head,
    keep_trained,
    tell_attachment,
    training_options,
)
from dspark_cli.graft_plan import plan_lines
from dspark_cli.loading import find_files
from dspark_cli.naming import PairChoice, check_known
from dspark_cli.output import say

if TYPE_CHECKING:
    from dspark.graft.run import GraftRun
    from dspark_cli.graft_view import LiveView, PlainView

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
    position_decay: graft_options.PositionDecay = None,
    loss_vocabulary: graft_options.LossVocabulary = DEFAULTS.loss_vocabulary,
    draft_vocabulary: graft_options.DraftVocabulary = DEFAULTS.draft_vocabulary,
    anchors: graft_options.Anchors = DEFAULTS.anchors,
    steps: graft_options.Steps = DEFAULTS.steps,
    batch_size: graft_options.BatchSize = DEFAULTS.batch_size,
    accumulate: graft_options.Accumulate = DEFAULTS.accumulate,
    lr: graft_options.Lr = DEFAULTS.learning_rate,
    markov_share: graft_options.MarkovShare = DEFAULTS.markov_learning_share,
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
    """Attach the released head that fits a target, or train one if there is none.

    An attached head is probed first.
    A training can be interrupted: re-run the same command to resume.
    The result is saved under a name.
    """
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
    keep_trained(name, base, out, as_json=as_json)


def _named(parameters: list[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in parameters)


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
        raise InputError(
            f"--taps {text} is not a list of layers", "Write it like --taps 1,8,15."
        ) from None


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
