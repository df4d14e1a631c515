"""What a trained head is worth: decoding, calibration, speed-up, model card."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from dspark.checkpoints.deepspec import update_head_config
from dspark.graft.data.answer_file import Answer
from dspark.graft.data.corpus import CorpusProgress
from dspark.graft.head.write_head import store_shared_weights
from dspark.graft.job import GraftEvent, GraftJob, Regrafted
from dspark.graft.judge.acceptance import Evaluation, evaluate
from dspark.graft.judge.calibrate import calibrate_head
from dspark.graft.judge.model_card import Base, write_card
from dspark.graft.judge.open_target import OpenTarget
from dspark.graft.judge.speedup import choose_prompts, measure_head
from dspark.graft.train.metrics import MetricsFile

EVALUATION_TOKENS = 128
Prompts = Sequence[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Trained:
    """What is left of a training once its target is released; the head is on disk.

    `tables` are the target's embedding and output head [V, H], if the head shall hold them.
    """

    held_out: tuple[Answer, ...]
    step: int
    tables: tuple[torch.Tensor, torch.Tensor] | None


def judge_head(job: GraftJob, trained: Trained, origins: Mapping[str, str]) -> Iterator[GraftEvent]:
    """`origins` says which source a prompt is from."""
    prompts = [answer.prompt_ids for answer in trained.held_out]
    released = job.released if job.measurement is not None else None
    others = [head for head in (released, job.init_from) if head is not None]
    yield CorpusProgress("decoding held-out prompts", 0, 1)
    with OpenTarget(job.base, [job.out, *others], job.runtime) as target:
        evaluation = evaluate(target, job.out, prompts, EVALUATION_TOKENS)
        update_head_config(job.out, {"graft": _figures(evaluation)})
        yield evaluation
        if job.init_from is not None:
            yield CorpusProgress("decoding with the head it began with", 0, 1)
            before = evaluate(target, job.init_from, prompts, EVALUATION_TOKENS)
            update_head_config(job.out, {"graft": {"began_with_tau": round(before.tau, 4)}})
            yield Regrafted(before, evaluation)
        yield CorpusProgress("calibrating the confidences", 0, 1)
        yield from _calibrate(job, trained.step, target, prompts)
        if trained.tables is not None:
            store_shared_weights(job.out, *trained.tables)
        if job.measurement is not None:
            other = None
            if released is not None:
                yield CorpusProgress("decoding with the released head", 0, 1)
                other = evaluate(target, released, prompts, EVALUATION_TOKENS)
            chosen = choose_prompts(trained.held_out, origins)
            work = measure_head(
                target, job.out, chosen, evaluation, other, job.measurement, job.command
            )
            yield (yield from work)
    write_card(job.out, Base.of(job.base), job.licence)


def _figures(evaluation: Evaluation) -> dict[str, object]:
    return {
        "tau_greedy": round(evaluation.tau, 4),
        "acceptance_by_position": [round(rate, 4) for rate in evaluation.acceptance_by_position],
        "held_out_prompts": evaluation.prompts,
        "rounds": evaluation.rounds,
    }


def _calibrate(
    job: GraftJob, step: int, target: OpenTarget, prompts: Prompts
) -> Iterator[GraftEvent]:
    """Nothing if too few rounds were decoded to judge the confidences by."""
    result = calibrate_head(target, job.out, prompts, EVALUATION_TOKENS)
    if result is not None:
        with MetricsFile(job.metrics_path, step) as metrics:
            metrics.write("calibration", {"step": step, **asdict(result)})
        yield result
