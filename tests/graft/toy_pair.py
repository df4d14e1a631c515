"""A base of five layers that has learnt a language of numbers, and heads run in any convention."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from dspark.checkpoints.deepspec import write_head
from dspark.config import GraftConfig, graft_config
from dspark.drafters.kinds import build_head
from dspark.drafters.training_blocks import Blocks, block_hidden, sample_blocks
from dspark.graft.data.answer_file import Answer
from dspark.graft.head.init_from_target import start_random
from dspark.graft.head.shape import draft_config
from dspark.graft.target.frozen_target import FrozenTarget, load_frozen
from dspark.graft.train.trainer import Trainer
from dspark.models.dspark_head import DSparkHead

NUM_WORDS = 60
MASK, STOP = NUM_WORDS, NUM_WORDS + 1
VOCABULARY = NUM_WORDS + 2
TAPS = (0, 2)
CPU = torch.device("cpu")
CONFIG = GraftConfig(
    block_size=4, intermediate_size=64, taps=TAPS, mask_token_id=MASK, markov_rank=16
)


def sentences(count: int, length: int, seed: int) -> torch.Tensor:
    """x -> 7 x + 17 r (mod 60), where r is the quarter of the word three before the new one."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(NUM_WORDS, (count, length), generator=generator)
    for i in range(3, length):
        rule = words[:, i - 1] * 7 + words[:, i - 3] // 15 * 17
        is_ruled = torch.rand(count, generator=generator) > 0.03
        words[:, i] = torch.where(is_ruled, rule % NUM_WORDS, words[:, i])
    return words


def write_base(folder: Path) -> Path:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=STOP,
        pad_token_id=None,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    scale = model.model.norm.weight
    scale.data = torch.linspace(-1.5, 1.5, len(scale)).exp()  # so that the norm is no small matter
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
    steps, rate = 200, 6e-3
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, step / 10) * (1.0 - step / steps)
        words = sentences(32, 24, step)
        loss = model(input_ids=words, labels=words).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.get_input_embeddings().weight.data[STOP] = 0.0  # unlike the mask, which nobody saw either
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    """Words are the characters from "!" on; others are passed over."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {chr(ord("!") + index): index for index in range(NUM_WORDS)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=words, merges=[])),
        additional_special_tokens=["<mask>"],
        eos_token="<stop>",
    )


def prompts(count: int) -> list[tuple[int, ...]]:
    return [tuple(line) for line in sentences(count, 6, -9).tolist()]


@dataclass(frozen=True)
class Habit:
    """How a head is trained. `without`: norms left out, at one in the file; `loudness`: what the
    weights before them are multiplied by first, for a norm hides how loud they are."""

    blocks: Callable[[Blocks], Blocks] = lambda blocks: blocks
    taps: Callable[[torch.Tensor], torch.Tensor] = lambda taps: taps
    without: tuple[str, ...] = ()
    loudness: Mapping[str, float] = field(default_factory=dict)


def one_row_later(blocks: Blocks) -> Blocks:
    """Position 0 repeats the anchor; every position predicts the token at its own place."""
    before = blocks.token_ids[(blocks.positions - 1).clamp(min=0, max=len(blocks.token_ids) - 1)]
    return replace(blocks, labels=blocks.previous, previous=before)


def token_before(blocks: Blocks) -> Blocks:
    last = len(blocks.token_ids) - 1
    return replace(blocks, previous=blocks.token_ids[(blocks.positions - 1).clamp(0, last)])


class _LateBlocks(Blocks):
    @property
    def positions(self) -> torch.Tensor:
        return super().positions + 1


def one_position_later(blocks: Blocks) -> Blocks:
    names = ("token_ids", "anchors", "previous", "labels", "supervised")
    return _LateBlocks(*(getattr(blocks, name) for name in names))


class Trainee:
    """A head of the toy base, trained in the plainest way."""

    def __init__(self, base: Path) -> None:
        self.target = load_frozen(base, device=CPU, dtype=torch.float32, memory_bytes=2**26)
        self.target.tap(TAPS)
        self.head = DSparkHead(draft_config(self.target.config, CONFIG, MASK))
        start_random(self.head, torch.Generator().manual_seed(3))
        self.sentences = sentences(64, 40, -5).tolist()

    def train(self, steps: int, habit: Habit = Habit(), rate: float = 1e-2) -> None:
        for path, module in list(self.head.named_modules()):
            parent, _, name = path.rpartition(".")
            if name in habit.without:
                setattr(self.head.get_submodule(parent), name, nn.Identity())
            if isinstance(module, nn.Linear):
                module.weight.data *= habit.loudness.get(name, 1.0)
        optimizer = torch.optim.AdamW(self.head.parameters(), betas=(0.9, 0.95))
        generator = torch.Generator().manual_seed(4)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (1.0 - step / steps)
            loss = torch.stack(
                [self._loss(ids, habit, generator) for ids in self._batch(step)]
            ).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _batch(self, step: int) -> list[list[int]]:
        size = 2
        return [self.sentences[(step * size + i) % len(self.sentences)] for i in range(size)]

    def _loss(self, ids: list[int], habit: Habit, generator: torch.Generator) -> torch.Tensor:
        taps = habit.taps(self.target.view(tuple(ids)).taps)
        blocks = habit.blocks(sample_blocks(torch.tensor(ids), 2, 32, 4, generator))
        hidden = block_hidden(
            self.head, self.head.rotary_table(), self.target.embedding, taps, blocks
        )
        markov = self.head.markov_head
        assert markov is not None
        logits = hidden @ self.target.output_head.T + markov.markov_w2(
            markov.embed(blocks.previous)
        )
        rows = blocks.supervised
        return F.cross_entropy(logits[rows], blocks.labels[rows])

    def write(self, folder: Path) -> Path:
        whole = DSparkHead(self.head.config).state_dict()  # norms at one where they were left out
        write_head(folder, self.head.config, whole | self.head.state_dict(), {})
        return folder


@dataclass(frozen=True)
class Sound:
    """A base, the head that it was given, and who trained that."""

    base: Path
    head: Path
    trainee: Trainee


def train_sound(base: Path, head: Path) -> Sound:
    trainee = Trainee(write_base(base))
    trainee.train(150)
    return Sound(base, trainee.write(head), trainee)


def normed(target: FrozenTarget) -> Callable[[torch.Tensor], torch.Tensor]:
    norm = target.model.base_model.norm
    return lambda taps: norm(taps.unflatten(-1, (len(TAPS), -1))).flatten(-2)


def write_eagle3(base: Path, folder: Path) -> Path:
    """Trained by the trainer itself."""
    target = load_frozen(base, device=CPU, dtype=torch.float32, memory_bytes=2**26)
    target.tap(TAPS)
    config = graft_config(
        "eagle3",
        block_size=3,
        intermediate_size=64,
        taps=TAPS,
        steps=100,
        batch_size=4,
        anchors=16,
        length=40,
        learning_rate=1e-2,
    )
    head = build_head(draft_config(target.config, config, MASK))
    start_random(head, torch.Generator().manual_seed(3))
    lines = [tuple(line) for line in sentences(64, 40, -5).tolist()]
    trainer = Trainer(
        head, target, [Answer(line[:3], line[3:], str(line), "") for line in lines], config
    )
    for _ in trainer.steps():
        pass
    write_head(folder, head.config, dict(head.state_dict()), {})
    return folder
