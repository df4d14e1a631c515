"""Writes a trained head to disk: its weights and their provenance."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dspark.checkpoints.deepspec import write_draft_vocabulary, write_head
from dspark.checkpoints.head_config import HeadConfig
from dspark.checkpoints.heads import SHARED_WITH_TARGET, read_draft
from dspark.checkpoints.model_folder import read_config
from dspark.config import GraftConfig, graft_config
from dspark.graft.job import GraftJob
from dspark.graft.judge.speedup import MEASURED
from dspark.graft.train.trainer import Trainer
from dspark.machine import describe_versions

Weights = Mapping[str, torch.Tensor]


def write_trained_head(
    job: GraftJob, trainer: Trainer, weights: Weights, figures: dict[str, Any]
) -> None:
    """Writes this step's weights in DeepSpec's layout, with their provenance and `figures`."""
    provenance = {
        "base": job.base.name,
        "algorithm": job.config.algorithm,
        "data": {
            "prompts": list(job.source.names),
            "held_out": job.config.eval_prompts,
            "temperature": job.config.answer_temperature,
            "max_answer_tokens": job.config.max_answer_tokens,
        },
        "settings": _changed_settings(job.config),
        "versions": describe_versions(),
        "seed": job.config.seed,
        "steps": trainer.step_index,
        "tokens": trainer.tokens_seen,
        "answers": len(trainer.answers),
        **figures,
    }
    tensors = {name: tensor.to("cpu", torch.bfloat16) for name, tensor in weights.items()}
    write_head(job.out, trainer.head.config, tensors, {"graft": provenance})
    is_partial = job.config.loss_vocabulary > 0
    (job.out / MEASURED).unlink(missing_ok=True)  # it belonged to the previous weights
    write_draft_vocabulary(job.out, trainer.vocabulary.drafted if is_partial else None)


def run_identity(job: GraftJob, shape: HeadConfig) -> str:
    """Everything but the answers that affects the final weights of a run."""
    settings = asdict(job.config)
    for name in ("checkpoint_every", "tap_memory_gib", "max_answer_tokens", "answer_temperature"):
        del settings[name]
    for name in ("answers_at_once", "accumulate", "anchors_at_once"):
        del settings[name]
    return json.dumps([settings, asdict(shape), str(job.init_from)], sort_keys=True)


def _changed_settings(config: GraftConfig) -> dict[str, Any]:
    """The settings that affect the weights and differ from the algorithm's defaults."""
    defaults = asdict(graft_config(config.algorithm))
    told_apart = ("seed", "steps", "eval_prompts", "answer_temperature", "max_answer_tokens")
    of_the_machine = ("checkpoint_every", "tap_memory_gib", "chunk_rows")
    return {
        name: value
        for name, value in asdict(config).items()
        if value != defaults[name] and name not in (*told_apart, *of_the_machine)
    }


def store_shared_weights(head: Path, embedding: torch.Tensor, output_head: torch.Tensor) -> None:
    """embedding and output_head [V, H], the base's own; the figures in config.json stay."""
    config, tensors = read_draft(head)
    shared = dict(zip(SHARED_WITH_TARGET, (embedding, output_head), strict=True))
    copies = {name: tensor.detach().cpu().bfloat16() for name, tensor in shared.items()}
    own_keys = {"graft": read_config(head).get("graft", {})}
    write_head(head, config, tensors | copies, own_keys)
