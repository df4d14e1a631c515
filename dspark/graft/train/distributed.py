"""Processes that train together: a single one, or those started by `accelerate launch`.

Each takes its share of every batch and the gradients are summed, so that a step is the same for
any number of processes. Only the first process writes files and yields events.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from dspark.errors import InputError
from dspark.extras import install_command

LONGEST_WAIT = timedelta(days=30)  # for the first process, which writes the answers

Shared = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class Ranks(Protocol):
    """`index` of `count` processes."""

    index: int
    count: int
    shards: bool  # whether each process holds a part of every weight

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and tells events."""
        ...

    def share(self, objective: nn.Module, optimizer: Optimizer) -> Shared:
        """The module to call instead. Gradients become means over the processes."""
        ...

    def without_sync(self, shared: Shared) -> AbstractContextManager[Any]:
        """Keeps gradients local, for parts of a batch before the last one."""
        ...

    def total(self, sums: torch.Tensor) -> torch.Tensor: ...

    def whole(self, state: Any) -> Any:
        """`state` with full tensors; every process must call it."""
        ...

    def agree(self, is_asked: bool) -> bool:
        """Whether any process was asked to stop; waits for all."""
        ...

    def leave(self) -> None:
        """Processes no longer wait for one another."""
        ...


class SingleProcess:
    index, count, is_first, shards = 0, 1, True, False

    def share(self, objective: nn.Module, optimizer: Optimizer) -> Shared:
        return objective

    def without_sync(self, shared: Shared) -> AbstractContextManager[Any]:
        return nullcontext()

    def total(self, sums: torch.Tensor) -> torch.Tensor:
        """As Ranks.total."""
        return sums

    def whole(self, state: Any) -> Any:
        return state

    def agree(self, is_asked: bool) -> bool:
        return is_asked

    def leave(self) -> None:
        pass


class DataParallel:
    """Through accelerate's data parallelism: every process holds the whole head."""

    shards = False

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.index, self.count = accelerator.process_index, accelerator.num_processes
        self.is_first = self.index == 0

    def share(self, objective: nn.Module, optimizer: Optimizer) -> Shared:
        """All processes get the first one's weights."""
        shared: Shared = self._accelerator.prepare_model(objective)
        return shared

    def without_sync(self, shared: Shared) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._accelerator.no_sync(shared)
        return context

    def total(self, sums: torch.Tensor) -> torch.Tensor:
        """As Ranks.total."""
        reduced: torch.Tensor = self._accelerator.reduce(sums, reduction="sum")
        return reduced

    def whole(self, state: Any) -> Any:
        return state

    def agree(self, is_asked: bool) -> bool:
        asked = torch.tensor([float(is_asked)], device=self._accelerator.device)
        return bool(self.total(asked) > 0)

    def leave(self) -> None:
        self._accelerator.wait_for_everyone()
        self._accelerator.end_training()
        self._accelerator.free_memory()  # it holds the objective, and with it the target


class FullySharded(DataParallel):
    """Through torch's fully_shard: every process holds a part of each weight, its gradient and its
    moments.

    The head is one unit, whole from the forward to the end of the backward: its layers are called
    by their parts and its Markov table by the loss, for which hooks of smaller units would not
    fire.
    """

    shards = True
    _objective: Any = None

    def share(self, objective: nn.Module, optimizer: Optimizer) -> Shared:
        """All processes get the first one's weights."""
        from torch.distributed import broadcast
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        for tensor in objective.state_dict().values():
            broadcast(tensor, src=0)
        whole = dict(objective.named_parameters())
        mesh = init_device_mesh(self._accelerator.device.type, (self.count,))
        self._objective = fully_shard(objective, mesh=mesh)
        parts = {whole[name]: part for name, part in objective.named_parameters()}
        _hand_over(optimizer, parts)
        shared: Shared = objective
        return shared

    @contextmanager
    def without_sync(self, shared: Shared) -> Iterator[None]:
        self._objective.set_requires_gradient_sync(False)
        yield
        self._objective.set_requires_gradient_sync(True)

    def whole(self, state: Any) -> Any:
        from torch.distributed.tensor import DTensor

        return tree_map(lambda t: t.full_tensor() if isinstance(t, DTensor) else t, state)

    def leave(self) -> None:
        super().leave()
        self._objective = None


def _hand_over(optimizer: Optimizer, parts: dict[nn.Parameter, nn.Parameter]) -> None:
    """From here on the optimizer steps the shards, with their share of its moments."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    for whole, part in parts.items():
        assert isinstance(part, DTensor)
        for name, value in optimizer.state.get(whole, {}).items():
            is_moment = value.shape == whole.shape
            optimizer.state[part][name] = (
                distribute_tensor(value, part.device_mesh, part.placements) if is_moment else value
            )
        optimizer.state.pop(whole, None)
    for group in optimizer.param_groups:
        group["params"] = [parts[whole] for whole in group["params"]]


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def join_ranks(device: str) -> Ranks:
    """Raises InputError for unsupported launch settings."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return SingleProcess()
    is_sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
    if is_sharded and os.environ.get("FSDP_VERSION", "1") != "2":
        raise InputError(
            "a head can only be sharded by FSDP version 2",
            "Launch it with --fsdp_version 2.",
        )
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError as error:
        raise InputError(
            "several processes need accelerate", "Install it: " + install_command("train")
        ) from error
    handlers = [InitProcessGroupKwargs(timeout=LONGEST_WAIT)]
    is_cpu = device == "cpu"
    accelerator = Accelerator(cpu=is_cpu, mixed_precision="no", kwargs_handlers=handlers)
    return FullySharded(accelerator) if is_sharded else DataParallel(accelerator)


def check_shares(batch: Sequence[Any], ranks: Ranks) -> None:
    """Raises InputError if the processes would not have the same number of sequences."""
    if len(batch) % ranks.count:
        larger = -(-len(batch) // ranks.count) * ranks.count
        raise InputError(
            f"a batch of {len(batch)} sequences does not divide evenly by {ranks.count} processes",
            f"Use --batch-size {larger}, with at least as many answers.",
        )
