"""Training of a head: batches of sequences, one optimizer step each, bit-exact after resuming.

The order of sequences and the anchors depend on seed and step alone, so a checkpoint needs no
generator states.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch.optim import Optimizer

from dspark.config import GraftConfig
from dspark.errors import InputError
from dspark.graft.data.answer_file import Answer
from dspark.graft.target.frozen_target import FrozenTarget
from dspark.graft.train.averaged_weights import AveragedWeights
from dspark.graft.train.distributed import (
    Ranks,
    Shared,
    SingleProcess,
    check_shares,
)
from dspark.graft.train.loss_vocabulary import LossVocabulary
from dspark.graft.train.objective import Objective, Part, Sampled
from dspark.graft.train.optimizers import make_optimizer
from dspark.graft.train.seeds import generator_of
from dspark.graft.train.supervised_rows import figures
from dspark.models.head_module import HeadModule

ALONE = SingleProcess()
SEQUENCES_AHEAD = 32  # whose views are made together, sorted by length


@dataclass(frozen=True, slots=True)
class StepReport:
    """Means over the supervised positions of one step. tau is the expectation at temperature 1."""

    step: int
    loss: float
    cross_entropy: float
    l1: float
    confidence: float
    tau: float
    acceptance_by_position: tuple[float, ...]
    learning_rate: float
    grad_norm: float
    tokens: int
    positions: int  # supervised ones
    seconds: float
    distillation: float = 0.0


class Trainer:
    """Owns head and optimizer; the target is frozen."""

    def __init__(
        self,
        head: HeadModule,
        target: FrozenTarget,
        answers: Sequence[Answer],
        config: GraftConfig,
        ranks: Ranks = ALONE,
    ) -> None:
        self.head, self.target, self.config, self.ranks = head, target, config, ranks
        self.answers = trainable(answers, config.length)
        self.step_index = 0
        self.tokens_seen = 0
        check_whole(ranks, config)
        self.optimizer = make_optimizer(head, config)
        self.average = AveragedWeights(head, config.average) if config.average else None
        self.objective = Objective(head, target, config)
        self._shared: Shared | None = None
        self._ahead = -1  # the first of the steps whose views were read
        self.vocabulary = LossVocabulary(self.answers, head.config.vocab_size, config)

    def steps(self) -> Iterator[StepReport]:
        """One optimizer step per item, up to config.steps."""
        while self.step_index < self.config.steps:
            yield self.step()

    def step(self) -> StepReport:
        started = time.perf_counter()
        batch = self._batch(self.step_index)
        generator = generator_of(self.config.seed, "anchors", self.step_index)
        rate = learning_rate(self.config, self.step_index)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.zero_grad(set_to_none=True)
        sums = self._backward(batch, generator)
        norm = torch.nn.utils.clip_grad_norm_(self.head.parameters(), self.config.grad_clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.take()
        num_tokens = sum(len(answer.token_ids) for answer in batch)
        self.step_index += 1
        self.tokens_seen += num_tokens
        return StepReport(
            step=self.step_index,
            learning_rate=rate,
            grad_norm=float(self.ranks.whole(norm)),
            tokens=num_tokens,
            seconds=time.perf_counter() - started,
            **figures(sums),
        )

    @torch.no_grad()
    def validate(self, answers: Sequence[Answer]) -> StepReport:
        """The same figures on other answers, without a step; the same anchors each time."""
        started = time.perf_counter()
        cut = trainable(answers, self.config.length)
        generator = generator_of(self.config.seed, "validation", 0)
        sampled = self.objective.sample(cut, generator)
        with self._averaged():
            _, sums = self.objective(Part(sampled, self.objective.total_weight(sampled), None))
        return StepReport(
            step=self.step_index,
            learning_rate=0.0,
            grad_norm=0.0,
            tokens=sum(len(answer.token_ids) for answer in cut),
            seconds=time.perf_counter() - started,
            **figures(sums),
        )

    def weights(self) -> dict[str, torch.Tensor]:
        """Tensors of the whole head as it is trained; every process must call it."""
        whole: dict[str, torch.Tensor] = self.ranks.whole(self.head.state_dict())
        return whole

    def final_weights(self) -> dict[str, torch.Tensor]:
        """Those to be written: the average, where there is one."""
        with self._averaged():
            return {name: tensor.clone() for name, tensor in self.weights().items()}

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.in_place()

    def _batch(self, step: int) -> list[Answer]:
        """Whole epochs of the data, each in a new order."""
        size = min(self.config.batch_size, len(self.answers))
        per_epoch = len(self.answers) // size
        epoch, index = divmod(step, per_epoch)
        order = torch.randperm(
            len(self.answers), generator=generator_of(self.config.seed, "order", epoch)
        )
        return [self.answers[i] for i in order[index * size : (index + 1) * size].tolist()]

    def _backward(self, batch: Sequence[Answer], generator: torch.Generator) -> torch.Tensor:
        """Gradients of the batch's loss, part by part; returns its sums."""
        sampled = self.objective.sample(batch, generator)
        total = self.objective.total_weight(sampled)
        tokens = self.vocabulary.at(self.step_index, batch)
        ranks = self.ranks
        check_shares(sampled, ranks)
        if self._shared is None:  # only now, as the weights were loaded since
            self._shared = ranks.share(self.objective, cast(Optimizer, self.optimizer))
        shares = [divided(sampled[i :: ranks.count], self.config) for i in range(ranks.count)]
        own, num_passes = shares[ranks.index], max(map(len, shares))
        if self.target.reads_together:
            self._read_ahead()
        done = self.step_index / self.config.steps
        sums = []
        for index in range(num_passes):
            is_last = index == num_passes - 1
            counts = index < len(own)  # sharded weights need as many passes in every process
            sequences = own[index if counts else 0]
            with nullcontext() if is_last else ranks.without_sync(self._shared):
                loss, part = self._shared(Part(sequences, total, tokens, done))
                # times ranks.count, as gradients become means over processes
                (loss * (ranks.count if counts else 0.0)).backward()
            if counts:
                sums.append(part)
        return ranks.total(torch.stack(sums).sum(dim=0))

    def _read_ahead(self) -> None:
        """The views of this process's sequences of some steps at once. Which ones does not depend
        on the step that a run goes on from."""
        size = max(1, SEQUENCES_AHEAD // self.config.batch_size)
        first = self.step_index // size * size
        if self._ahead != first:
            steps = range(first, min(first + size, self.config.steps))
            own = slice(self.ranks.index, None, self.ranks.count)
            self.target.read(each.token_ids for step in steps for each in self._batch(step)[own])
            self._ahead = first


def divided(batch: Sequence[Sampled], config: GraftConfig) -> list[list[Sampled]]:
    """The passes of a step: config.accumulate parts of the batch, each in pieces of at most
    config.anchors_at_once blocks in all."""
    size = math.ceil(len(batch) / config.accumulate)
    passes: list[list[Sampled]] = []
    for start in range(0, len(batch), size):
        room = 0
        for sampled in batch[start : start + size]:
            begin, num_blocks = 0, len(sampled.blocks.anchors)
            while begin < num_blocks:
                if room == 0:
                    passes.append([])
                    room = config.anchors_at_once
                end = min(begin + room, num_blocks)
                passes[-1].append(replace(sampled, blocks=sampled.blocks.some(begin, end)))
                room -= end - begin
                begin = end
    return passes


def check_whole(ranks: Ranks, config: GraftConfig) -> None:
    """Raises InputError where weights would be in parts that Muon or an average cannot take."""
    if ranks.shards and (config.optimizer == "muon" or config.average):
        raise InputError(
            "a sharded head is trained by AdamW, without an average of its weights",
            "Leave --optimizer and --average, or launch it without FSDP.",
        )


def learning_rate(config: GraftConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def trainable(answers: Sequence[Answer], length: int) -> list[Answer]:
    """Cut to `length` tokens; only answers in which an anchor and its label still fit."""
    cut = []
    for answer in answers:
        ids = answer.answer_ids[: max(length - len(answer.prompt_ids), 0)]
        if len(ids) > 1:
            cut.append(replace(answer, answer_ids=ids))
    return cut
