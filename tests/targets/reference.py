"""Tiny models of any config on disk, and what transformers itself writes with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from dspark.config import EngineConfig, StopConfig
from dspark.drafters.base import Proposals
from dspark.engine.loop import Engine
from dspark.engine.request import Request
from dspark.engine.schedule.policies import FullSchedule
from dspark.events import Finished
from dspark.targets.base import Target

SIZES: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def save_model(config: Any, folder: Path, seed: int = 0) -> Path:
    """Random weights that are spread enough for the next token to be beyond doubt."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def some_tokens(count: int) -> list[int]:
    return [(i * 7) % 190 + 3 for i in range(count)]


def generated(folder: Path, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    """Greedy, by a freshly loaded model: some keep what they computed for a longer text."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([list(prompt)])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return tuple(out[0, len(prompt) :].tolist())


class KnownText:
    """Drafts a text that is known beforehand, wrong at every fifth place: drafts are really
    accepted, and refused after blocks of every length."""

    block_size, num_weights = 4, 0
    target_layer_ids: tuple[int, ...] = ()

    def __init__(self, text: Sequence[int]) -> None:
        self._drafts = [t ^ (place % 5 == 0) for place, t in enumerate(text)]

    def open(self) -> list[int]:
        return []

    def extend(self, slots: Any, token_ids: Any, taps: Any) -> None:
        for slot, ids in zip(slots, token_ids, strict=True):
            slot += ids.tolist()

    def truncate(self, slot: list[int], length: int) -> None:
        del slot[length:]

    def propose(self, slots: Any, anchors: torch.Tensor, chooser: Any) -> Proposals:
        blocks = [self._drafts[len(slot) + 1 :][: self.block_size] for slot in slots]
        lengths = [len(block) for block in blocks]
        padded = [block + [0] * (self.block_size - len(block)) for block in blocks]
        return Proposals(torch.tensor(padded), [None] * len(blocks), None, lengths)


def decoded(
    target: Target, prompt: Sequence[int], count: int, drafter: Any = None, chunk: int = 512
) -> tuple[tuple[int, ...], int]:
    """What our engine writes, and how many drafts it accepted for it."""
    engine = Engine(target, drafter, FullSchedule(), config=EngineConfig(prefill_chunk=chunk))
    stop = StopConfig(max_tokens=count, ignore_stop_tokens=True)
    (done,) = (
        e for e in engine.run([Request(tuple(prompt), stop=stop)]) if isinstance(e, Finished)
    )
    return done.token_ids, done.stats.accepted
