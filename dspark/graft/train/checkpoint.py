"""Training state on disk: everything the next step depends on, replaced atomically."""

import pickle
from pathlib import Path

import torch

from dspark.atomic import replacing
from dspark.errors import CheckpointError, InputError, StorageError
from dspark.graft.data.answer_file import fingerprints
from dspark.graft.train.trainer import Trainer


def save(path: Path, trainer: Trainer, identity: str) -> None:
    """`identity` covers the run's settings: only a run of these that has all of this one's answers
    can go on from here.

    Called by every process of a run; the first one writes.
    """
    state = {
        "identity": identity,
        "answers": fingerprints(trainer.answers),
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


def load(path: Path, trainer: Trainer, identity: str) -> int:
    """Restores the trainer; the number of answers that were not there when the state was written.

    With more answers the run goes on from its step: epochs are those of all answers from there on.
    Raises InputError for another run's state.
    """
    try:
        state = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is not a training state ({error})", "Start over with --no-resume."
        ) from error
    present, known = set(fingerprints(trainer.answers)), set(state.get("answers", ()))
    if state["identity"] != identity or not known <= present:
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
    return len(present) - len(known)
