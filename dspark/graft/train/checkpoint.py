"""Training state on disk: everything the next step depends on, replaced atomically."""

import pickle
from pathlib import Path

import torch

from dspark.atomic import replacing
from dspark.errors import CheckpointError, InputError, StorageError
from dspark.graft.train.trainer import Trainer


def save(path: Path, trainer: Trainer, identity: str) -> None:
    """`identity` covers the run's settings and data; only the same run can resume from here.

    Called by every process of a run; the first one writes.
    """
    state = {
        "identity": identity,
        "step": trainer.step_index,
        "tokens": trainer.tokens_seen,
        "head": trainer.weights(),
        "optimizer": trainer.ranks.whole(trainer.optimizer.state_dict()),
    }
    if trainer.average is not None:
        state["average"] = trainer.average.tensors
    if not trainer.ranks.is_first:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:
        raise StorageError(
            f"the training state could not be written to {path} ({str(error).splitlines()[0]})",
            "Free some space and run the same command again; it resumes from the last checkpoint.",
        ) from error


def load(path: Path, trainer: Trainer, identity: str) -> None:
    """Restore the trainer. Raises InputError for another run's state."""
    try:
        state = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is not a training state ({error})", "Start over with --no-resume."
        ) from error
    if state["identity"] != identity:
        raise InputError(
            f"{path} belongs to a run with other settings or data",
            "Start over with --no-resume, or give another --out.",
        )
    trainer.head.load_state_dict(state["head"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.average is not None:
        trainer.average.tensors = state["average"]
        trainer.average.num_steps = state["step"]
    trainer.step_index = state["step"]
    trainer.tokens_seen = state["tokens"]
