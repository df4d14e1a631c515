"""Training of a head: batches of sequences, one optimizer step each, resumable to the bit.

Order of sequences and anchors follow from the seed and the step alone, so that a checkpoint needs
no generator states.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from dspark.config import GraftConfig
from dspark.drafters.head import DSparkHead
from dspark.graft.blocks import Blocks, block_hidden, sample_blocks
from dspark.graft.data import Answered
from dspark.graft.loss import LossWeights, OutputHead, distribution_loss
from dspark.graft.taps import FrozenTarget


@dataclass(frozen=True, slots=True)
class StepReport:
    """Means over the supervised slots of one step. tau is expected at temperature 1."""

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
    slots: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Forward:
    """The supervised slots of a batch, ordered by the target position they are compared with."""

    hidden: torch.Tensor  # [R, H]
    features: torch.Tensor | None  # [R, r]
    confidence: torch.Tensor | None  # [R] logits
    target_hidden: torch.Tensor  # [P, H]
    target_rows: torch.Tensor  # [R]
    labels: torch.Tensor  # [R]
    slots: torch.Tensor  # [R], k of each row
    blocks: torch.Tensor  # [R], index of the row's block in the batch
    num_blocks: int


class Trainer:
    """Owns head and optimizer; the target stays as it is."""

    def __init__(
        self,
        head: DSparkHead,
        target: FrozenTarget,
        answers: Sequence[Answered],
        config: GraftConfig,
    ) -> None:
        self.head, self.target, self.config = head, target, config
        self.answers = trainable(answers, config.length)
        self.step_index = 0
        self.tokens_seen = 0
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(head, config),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._rotary = head.rotary_table()
        rank = head.config.markov_rank
        self._output_head = OutputHead(target.output_head.float(), rank, target.softcap)
        self.vocabulary = LossVocabulary(self.answers, head.config.vocab_size, config)

    def steps(self) -> Iterator[StepReport]:
        """One optimizer step each time it is asked, up to config.steps."""
        while self.step_index < self.config.steps:
            yield self.step()

    def step(self) -> StepReport:
        started = time.perf_counter()
        batch = self._batch(self.step_index)
        generator = _generator(self.config.seed, "anchors", self.step_index)
        rate = learning_rate(self.config, self.step_index)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.zero_grad(set_to_none=True)
        loss, parts = self._loss(batch, generator, self.step_index)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.head.parameters(), self.config.grad_clip)
        self.optimizer.step()
        num_tokens = sum(len(answer.token_ids) for answer in batch)
        self.step_index += 1
        self.tokens_seen += num_tokens
        return StepReport(
            step=self.step_index,
            loss=float(loss.detach()),
            learning_rate=rate,
            grad_norm=float(norm),
            tokens=num_tokens,
            seconds=time.perf_counter() - started,
            **parts,
        )

    @torch.no_grad()
    def validate(self, answers: Sequence[Answered]) -> StepReport:
        """The same figures on other answers, without a step; the same anchors each time."""
        started = time.perf_counter()
        cut = trainable(answers, self.config.length)
        loss, parts = self._loss(cut, _generator(self.config.seed, "validation", 0))
        return StepReport(
            step=self.step_index,
            loss=float(loss),
            learning_rate=0.0,
            grad_norm=0.0,
            tokens=sum(len(answer.token_ids) for answer in cut),
            seconds=time.perf_counter() - started,
            **parts,
        )

    def _batch(self, step: int) -> list[Answered]:
        """Whole epochs of the data in a new order each."""
        size = min(self.config.batch_size, len(self.answers))
        per_epoch = len(self.answers) // size
        epoch, index = divmod(step, per_epoch)
        order = torch.randperm(
            len(self.answers), generator=_generator(self.config.seed, "order", epoch)
        )
        return [self.answers[i] for i in order[index * size : (index + 1) * size].tolist()]

    def _loss(
        self,
        batch: Sequence[Answered],
        generator: torch.Generator,
        step: int | None = None,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Over the loss vocabulary of a step; over the whole vocabulary without one."""
        forward = _join([self._forward(answer, generator) for answer in batch])
        tokens = None if step is None else self.vocabulary.at(step, batch)
        tokens = None if tokens is None else tokens.to(forward.labels.device)
        c = self.config
        decay = torch.exp(-forward.slots / c.position_decay)
        row_weights = decay / decay.sum()
        markov = self.head.markov_head
        w2 = None if markov is None else markov.markov_w2.weight
        head, labels = self._output_head, forward.labels
        if tokens is not None:
            head, labels = head.restricted(tokens), torch.searchsorted(tokens, labels)
            w2 = None if w2 is None else w2[tokens]
        if w2 is not None:
            head.load_markov(w2)
        loss, terms = distribution_loss(
            forward.hidden,
            forward.features,
            w2,
            forward.target_hidden,
            forward.target_rows,
            labels,
            row_weights,
            head,
            LossWeights(c.cross_entropy_weight, c.l1_weight, c.distillation_weight),
            c.chunk_rows,
        )
        surprise = loss.new_zeros(())
        if forward.confidence is not None:
            surprise = F.binary_cross_entropy_with_logits(
                forward.confidence, terms.accept_rate, row_weights, reduction="sum"
            )
            loss = loss + c.confidence_weight * surprise
        return loss, {
            "cross_entropy": float(terms.cross_entropy @ row_weights),
            "l1": float(2.0 * (1.0 - terms.accept_rate) @ row_weights),
            "confidence": float(surprise.detach()),
            "slots": len(forward.slots),
            **_acceptance(forward, terms.accept_rate, self.head.config.block_size),
        }

    def _forward(self, answer: Answered, generator: torch.Generator) -> _Forward:
        config = self.head.config
        token_ids = torch.tensor(answer.token_ids, device=self.target.embedding.device)
        blocks = sample_blocks(
            token_ids,
            len(answer.prompt_ids),
            self.config.anchors,
            config.block_size,
            generator,
        )
        view = self.target.view(answer.token_ids)
        hidden = block_hidden(self.head, self._rotary, self.target.embedding, view.taps, blocks)
        features, confidence = self._sequential(hidden, blocks.previous)
        rows = _ordered_rows(blocks)
        targets, target_rows = blocks.positions.flatten()[rows].unique(return_inverse=True)
        return _Forward(
            hidden=hidden.flatten(0, 1)[rows],
            features=None if features is None else features.flatten(0, 1)[rows],
            confidence=None if confidence is None else confidence.flatten()[rows],
            target_hidden=view.hidden[targets],
            target_rows=target_rows,
            labels=blocks.labels.flatten()[rows],
            slots=rows % config.block_size,
            blocks=rows // config.block_size,
            num_blocks=len(blocks.anchors),
        )

    def _sequential(
        self, hidden: torch.Tensor, previous: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """hidden [A, K, H], previous [A, K] -> Markov features [A, K, r], confidence [A, K]."""
        markov, confidence = self.head.markov_head, self.head.confidence_head
        features = embedding = None
        if markov is not None:
            embedding = markov.embed(previous)
            state = markov.initial_state(hidden[:, 0])
            steps = []
            for k in range(hidden.shape[1]):
                feature, state = markov.step(embedding[:, k], hidden[:, k], state)
                steps.append(feature)
            features = torch.stack(steps, dim=1)
        return features, None if confidence is None else confidence(hidden, embedding)


def _parameter_groups(head: DSparkHead, config: GraftConfig) -> list[dict[str, Any]]:
    """The Markov tables apart: one row a token, they learn by heart what is seen a few times."""
    markov = head.markov_head
    tables = [] if markov is None else [markov.markov_w1.weight, markov.markov_w2.weight]
    others = [p for p in head.parameters() if all(p is not table for table in tables)]
    return [
        {"params": others, "share": 1.0},
        {"params": tables, "share": config.markov_learning_share},
    ]


class LossVocabulary:
    """The tokens that a step's loss looks at.

    Nearly all of the target's mass lies on the tokens that it often writes; the others are drawn so
    that the head unlearns them too, at a fraction of the cost.
    """

    def __init__(self, answers: Sequence[Answered], vocab_size: int, config: GraftConfig) -> None:
        self._num_drawn, self._seed = config.loss_vocabulary, config.seed
        self.drafted = _most_frequent(answers, vocab_size, config.draft_vocabulary)
        self._is_drafted = torch.zeros(vocab_size, dtype=torch.bool)
        self._is_drafted[self.drafted] = True
        self._others = (~self._is_drafted).nonzero().squeeze(1)

    def at(self, step: int, batch: Sequence[Answered]) -> torch.Tensor | None:
        """Rising token ids, the batch's own among them; None for the whole vocabulary."""
        if not self._num_drawn or self._num_drawn >= len(self._others):
            return None
        generator = _generator(self._seed, "vocabulary", step)
        order = torch.randperm(len(self._others), generator=generator)
        chosen = self._is_drafted.clone()
        chosen[self._others[order[: self._num_drawn]]] = True
        chosen[[i for answer in batch for i in answer.token_ids]] = True
        return chosen.nonzero().squeeze(1)


def _most_frequent(answers: Sequence[Answered], vocab_size: int, limit: int) -> torch.Tensor:
    """Rising ids of the tokens that the sequences hold, of the `limit` most frequent unless 0."""
    ids = torch.tensor([i for answer in answers for i in answer.token_ids])
    counts = torch.bincount(ids, minlength=vocab_size)
    present = int((counts > 0).sum())
    order = counts.argsort(descending=True, stable=True)
    return order[: min(limit or present, present)].sort().values


def learning_rate(config: GraftConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def trainable(answers: Sequence[Answered], length: int) -> list[Answered]:
    """Cut to `length` tokens; only answers in which an anchor and its label still fit."""
    cut = []
    for answer in answers:
        ids = answer.answer_ids[: max(length - len(answer.prompt_ids), 0)]
        if len(ids) > 1:
            cut.append(Answered(answer.prompt_ids, ids, answer.prompt, answer.answer))
    return cut


def _ordered_rows(blocks: Blocks) -> torch.Tensor:
    """Flat indices of the supervised slots, by rising target position."""
    rows = blocks.supervised.flatten().nonzero().squeeze(1)
    return rows[blocks.positions.flatten()[rows].argsort(stable=True)]


def _join(parts: list[_Forward]) -> _Forward:
    """One batch out of its sequences; target rows and blocks are numbered through."""
    rows, blocks = 0, 0
    target_rows, block_ids = [], []
    for part in parts:
        target_rows.append(part.target_rows + rows)
        block_ids.append(part.blocks + blocks)
        rows += len(part.target_hidden)
        blocks += part.num_blocks
    return _Forward(
        hidden=torch.cat([part.hidden for part in parts]),
        features=_cat([part.features for part in parts]),
        confidence=_cat([part.confidence for part in parts]),
        target_hidden=torch.cat([part.target_hidden for part in parts]),
        target_rows=torch.cat(target_rows),
        labels=torch.cat([part.labels for part in parts]),
        slots=torch.cat([part.slots for part in parts]),
        blocks=torch.cat(block_ids),
        num_blocks=blocks,
    )


def _cat(tensors: list[torch.Tensor | None]) -> torch.Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None


def _acceptance(forward: _Forward, accept_rate: torch.Tensor, block_size: int) -> dict[str, Any]:
    """tau: one token of the target's own, and of the drafts as many as are expected to be kept."""
    rates = accept_rate.new_zeros(forward.num_blocks, block_size)
    rates[forward.blocks, forward.slots] = accept_rate
    counts = torch.bincount(forward.slots, minlength=block_size).clamp(min=1)
    by_position = rates.sum(dim=0) / counts
    return {
        "tau": 1.0 + float(rates.cumprod(dim=1).sum(dim=1).mean()),
        "acceptance_by_position": tuple(by_position.tolist()),
    }


def _generator(seed: int, purpose: str, index: int) -> torch.Generator:
    purposes = ("order", "anchors", "validation", "vocabulary")
    number = (seed * len(purposes) + purposes.index(purpose)) * 2**32 + index
    return torch.Generator().manual_seed(number)
