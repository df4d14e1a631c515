"""Our training loss against DeepSpec's: same target, first weights, batches and anchors, float32.

python benchmarks/vs_deepspec.py --reference DIR [--golden tests/graft/golden/deepspec_loss.json]

DIR is a checkout of DeepSpec. Its model, loss and optimizer run as they are; from outside come only
the anchors, the learning rate (its schedule goes 0.1 % over the peak in so short a run) and,
because its attention kernel needs a GPU, the same mask written out.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from dspark.bench.document import write_document
from dspark.checkpoints.dspark_config import MarkovType
from dspark.config import GraftConfig
from dspark.drafters.training_blocks import sample_blocks
from dspark.graft.data.answer_file import Answer
from dspark.graft.head.shape import draft_config
from dspark.graft.target.frozen_target import FrozenTarget
from dspark.graft.train.seeds import generator_of
from dspark.graft.train.trainer import Trainer, learning_rate
from dspark.models.dspark_head import DSparkHead

PARTS = ("cross_entropy", "l1", "confidence")
MARKOV_TYPES: tuple[MarkovType, ...] = ("vanilla", "gated", "rnn")
MASK = 95
TARGET: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
# Learning rate, weights of the loss and their decay are our defaults. Betas: DeepSpec has torch's;
# its tables learn at the whole rate, since they do not begin with bigrams.
CONFIG = GraftConfig(
    steps=50,
    batch_size=3,
    anchors=10,
    length=48,
    betas=(0.9, 0.999),
    markov_learning_share=1.0,
    block_size=7,
    num_layers=2,
    taps=(0, 2),
    mask_token_id=MASK,
    markov_rank=8,
    seed=3,
    chunk_rows=16,
)
# Defaults of ours that have to be DeepSpec's.
RECIPE = (
    "cross_entropy_weight",
    "l1_weight",
    "confidence_weight",
    "distillation_weight",
    "position_decay",
    "loss_vocabulary",
    "learning_rate",
    "weight_decay",
    "warmup",
    "grad_clip",
)
SHAPE = (
    *("steps", "batch_size", "anchors", "length", "betas", "markov_learning_share"),
    *("block_size", "num_layers", "taps"),
)
# (prompt tokens, answer tokens): fewer candidates than anchors, blocks cut by the end, one cut off
SIZES = ((3, 30), (8, 7), (5, 50), (12, 20), (2, 11), (20, 28))

Losses = list[tuple[float, float, float]]


@dataclass(frozen=True, slots=True)
class Step:
    """The sequences of one step, and the anchors that ours drew in each."""

    index: int
    answers: tuple[Answer, ...]
    anchors: tuple[torch.Tensor, ...]


def build_target() -> FrozenTarget:
    """A tiny random Qwen3, far from uniform in what it expects."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(Qwen3Config(**TARGET))
    fill(model, seed=1, deviation=0.25)
    target = FrozenTarget(model)
    target.tap(CONFIG.taps or ())
    return target


@torch.no_grad()
def fill(module: nn.Module, seed: int, deviation: float) -> None:
    """Normal weights by name, so that they depend on neither the order of creation nor its code."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator) * deviation
        parameter.copy_(1.0 + noise if name.endswith("norm.weight") else noise)


def build_answers() -> list[Answer]:
    generator = torch.Generator().manual_seed(2)
    answers = []
    for prompt, answer in SIZES:
        ids = torch.randint(MASK, (prompt + answer,), generator=generator).tolist()
        answers.append(Answer(tuple(ids[:prompt]), tuple(ids[prompt:]), "", ""))
    return answers


def build_trainer(config: GraftConfig) -> Trainer:
    target = build_target()
    head = DSparkHead(draft_config(target.config, config, MASK))
    fill(head, seed=4, deviation=0.1)
    return Trainer(head, target, build_answers(), config)


def our_losses(config: GraftConfig) -> Losses:
    """The three parts of the loss, step by step."""
    reports = build_trainer(config).steps()
    return [(each.cross_entropy, each.l1, each.confidence) for each in reports]


def planned_steps(trainer: Trainer) -> Iterator[Step]:
    """What ours trains on, without training."""
    config = trainer.config
    for index in range(config.steps):
        batch = trainer._batch(index)
        generator = generator_of(config.seed, "anchors", index)
        anchors = [
            sample_blocks(
                torch.tensor(each.token_ids, device=trainer.target.embedding.device),
                len(each.prompt_ids),
                config.anchors,
                config.block_size,
                generator,
            ).anchors
            for each in batch
        ]
        yield Step(index, tuple(batch), tuple(anchors))


class Reference:
    """DeepSpec's model, loss and optimizer, begun from the weights of `trainer`."""

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        start_group()
        sys.path.insert(0, str(folder))
        self.modeling = module_of("modeling.dspark.qwen3.modeling")
        self.loss = module_of("modeling.dspark.loss")
        common = module_of("modeling.dspark.common")
        self.config, self.target = trainer.config, trainer.target
        self.model = self._model(trainer)
        self.optimizer = module_of("utils.optim").BF16Optimizer(
            self.model,
            lr=self.config.learning_rate,
            total_steps=self.config.steps,
            warmup_ratio=self.config.warmup,
            weight_decay=self.config.weight_decay,
        )
        self._metrics: dict[str, float] = {}
        self.modeling.create_dspark_attention_mask = dense_mask
        self.loss.add_metric = self._keep_metric
        common.add_metric = self._keep_metric

    def _model(self, trainer: Trainer) -> Any:
        config, target = self.config, self.target
        shape = module_of("modeling.dspark.qwen3.config")
        draft_config = shape.build_draft_config(target.config, model_arguments(trainer))
        draft_config.intermediate_size = trainer.head.config.intermediate_size
        draft_config._attn_implementation = "sdpa"
        model = self.modeling.Qwen3DSparkModel(draft_config).to(target.embedding.device).train()
        missing, unexpected = model.load_state_dict(trainer.head.state_dict(), strict=False)
        if unexpected or set(missing) != {"embed_tokens.weight", "lm_head.weight"}:
            raise RuntimeError(f"other parameters than ours: {missing} {unexpected}, {config}")
        model.initialize_embeddings_and_head(
            embed_tokens=SimpleNamespace(weight=target.embedding),
            lm_head=SimpleNamespace(weight=target.output_head),
        )
        return model

    def _keep_metric(self, name: str, value: Any, den: Any = None, **_: Any) -> None:
        self._metrics[name] = float(value.detach()) / (1.0 if den is None else float(den))

    def backward(self, step: Step) -> tuple[float, float, float]:
        """One forward and one backward pass."""
        anchors = padded_anchors(step, self.config.anchors)
        self.modeling.sample_anchor_positions = lambda **_: anchors
        outputs = self.model(**padded(step, self.target))
        loss = self.loss.compute_dspark_loss(
            outputs=outputs,
            loss_decay_gamma=self.config.position_decay,
            ce_loss_alpha=self.config.cross_entropy_weight,
            l1_loss_alpha=self.config.l1_weight,
            confidence_head_alpha=self.config.confidence_weight,
        )
        loss.backward()
        names = ("ce_loss", "l1_loss", "confidence_loss")
        ce, l1, confidence = (self._metrics[name] for name in names)
        return ce, l1, confidence

    def step(self, step: Step) -> tuple[float, float, float]:
        losses = self.backward(step)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        for group in self.optimizer.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step.index)
        self.optimizer.step()
        return losses


def module_of(name: str) -> Any:
    """Of DeepSpec; to be changed from outside."""
    return importlib.import_module(f"deepspec.{name}")


def start_group() -> None:
    """DeepSpec's loss asks how many processes there are: one."""
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


class Arguments(SimpleNamespace):
    """DeepSpec asks for settings by attribute and with `in`."""

    def __contains__(self, name: str) -> bool:
        return name in vars(self)


def model_arguments(trainer: Trainer) -> Arguments:
    head, config = trainer.head.config, trainer.config
    return Arguments(
        num_draft_layers=head.num_layers,
        target_layer_ids=list(head.target_layer_ids),
        confidence_head_alpha=config.confidence_weight,
        confidence_head_with_markov=head.confidence_with_markov,
        markov_rank=head.markov_rank,
        markov_head_type=head.markov_type,
        block_size=head.block_size,
        mask_token_id=head.mask_token_id,
        num_anchors=config.anchors,
    )


def padded_anchors(step: Step, num_anchors: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Anchors [B, A], and which of them are more than padding."""
    present = [torch.ones_like(each, dtype=torch.bool) for each in step.anchors]
    return pad(step.anchors, num_anchors), pad(present, num_anchors)


def padded(step: Step, target: FrozenTarget) -> dict[str, torch.Tensor]:
    """The step as one rectangle, the form that DeepSpec takes."""
    views = [target.view(each.token_ids) for each in step.answers]
    device = target.embedding.device
    return {
        "input_ids": pad([torch.tensor(each.token_ids) for each in step.answers]).to(device),
        "loss_mask": pad(
            [
                torch.tensor([0.0] * len(each.prompt_ids) + [1.0] * len(each.answer_ids))
                for each in step.answers
            ]
        ).to(device),
        "target_hidden_states": pad([view.taps for view in views]),
        "target_last_hidden_states": pad([view.hidden for view in views]),
    }


def pad(tensors: Sequence[torch.Tensor], length: int = 0) -> torch.Tensor:
    length = length or max(len(each) for each in tensors)
    out = tensors[0].new_zeros(len(tensors), length, *tensors[0].shape[1:])
    for row, each in zip(out, tensors, strict=True):
        row[: len(each)] = each
    return out


def dense_mask(
    *,
    anchor_positions: torch.Tensor,
    block_keep_mask: torch.Tensor,
    seq_len: int,
    block_size: int,
    device: torch.device,
) -> torch.Tensor:
    """[B, 1, A * K, S + A * K] bool: the context before the anchor, and the own block.

    Blocks left out count nothing in the loss; they see themselves, for a softmax over nothing
    would be NaN.
    """
    num_blocks = anchor_positions.shape[1]
    limits = anchor_positions.repeat_interleave(block_size, dim=1).unsqueeze(-1)
    context = torch.arange(seq_len, device=device) < limits
    block = torch.arange(num_blocks, device=device).repeat_interleave(block_size)
    same_block = (block.unsqueeze(1) == block).expand(len(anchor_positions), -1, -1)
    return torch.cat([context, same_block], dim=-1).unsqueeze(1)


def reference_losses(folder: Path, config: GraftConfig) -> Losses:
    trainer = build_trainer(config)
    reference = Reference(folder, trainer)
    return [reference.step(step) for step in planned_steps(trainer)]


def settings_object() -> dict[str, Any]:
    """The settings that the losses depend on, as they come back from JSON."""
    training = {name: getattr(CONFIG, name) for name in RECIPE + SHAPE}
    settings = {"target": TARGET, "training": training, "sequences": SIZES}
    out: dict[str, Any] = json.loads(json.dumps(settings))
    return out


def largest_difference(ours: Losses, theirs: Losses) -> float:
    """Relative, over all steps and parts."""
    pairs = zip(ours, theirs, strict=True)
    return max(abs(a - b) / abs(b) for one, other in pairs for a, b in zip(one, other, strict=True))


def print_table(markov_type: str, ours: Losses, theirs: Losses) -> None:
    print(f"{markov_type:8}" + "".join(f"{part:>13} {'DeepSpec':>10}" for part in PARTS))
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True), start=1):
        columns = (f"{a:13.6f} {b:10.6f}" for a, b in zip(one, other, strict=True))
        print(f"{index:8}" + "".join(columns))
    print(f"largest relative difference {largest_difference(ours, theirs):.1e}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, required=True, help="a checkout of DeepSpec")
    parser.add_argument("--golden", type=Path, help="keep DeepSpec's losses in this file")
    arguments = parser.parse_args()
    losses = {}
    for markov_type in MARKOV_TYPES:
        config = replace(CONFIG, markov_type=markov_type)
        losses[markov_type] = reference_losses(arguments.reference, config)
        print_table(markov_type, our_losses(config), losses[markov_type])
    if arguments.golden:
        document = {"parts": PARTS, "losses": losses, "settings": settings_object()}
        arguments.golden.parent.mkdir(parents=True, exist_ok=True)
        write_document(arguments.golden, document)


if __name__ == "__main__":
    main()
