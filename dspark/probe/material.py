"""The material of a probe: the target's own continuations with logits and all taps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dspark.bench.prompts import own_prompts
from dspark.config import StopConfig
from dspark.engine.loop import Engine
from dspark.engine.request import Request
from dspark.engine.schedule.policies import FullSchedule
from dspark.errors import CheckpointError, InputError
from dspark.events import Finished
from dspark.targets.base import Target
from dspark.targets.dense import DenseTarget
from dspark.targets.dense_files import read_config
from dspark.targets.hf_model import final_norm, rope_theta
from dspark.text.stream import TextCodec, load_tokenizer
from dspark_kernels import rms_norm

NUM_PROMPTS = 16
NUM_TOKENS = 32
NUM_ANCHORS = 6  # of each prompt
LONGEST_PROMPT = 128
MAX_MASKS = 8


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt with the target's continuation: ids [S], logits [S, V], each layer's taps [S, H]."""

    token_ids: torch.Tensor
    prompt_length: int
    logits: torch.Tensor
    taps: Mapping[int, torch.Tensor]

    def anchors(self, depth: int) -> list[int]:
        """Evenly spaced places in the continuation with `depth` more tokens after them,
        descending."""
        first, last = self.prompt_length, len(self.token_ids) - 1 - depth
        count = min(NUM_ANCHORS, last - first + 1)
        places = {first + round(i * (last - first) / max(1, count - 1)) for i in range(count)}
        return sorted(places, reverse=True)

    def tokens(self, places: torch.Tensor) -> torch.Tensor:
        """The tokens [n] at these places, clamped to the ends."""
        return self.token_ids[places.clamp(0, len(self.token_ids) - 1)]


def default_prompts(target: Path) -> list[tuple[int, ...]]:
    """Our prompts, encoded by the target's chat template, or else its tokenizer."""
    codec = TextCodec.from_directory(target)
    if codec is None:
        raise InputError(f"{target} has no tokenizer, so the pair cannot be probed")
    encoded = [
        codec.encode_chat([{"role": "user", "content": prompt.text}])
        if codec.has_chat_template
        else codec.encode(prompt.text)
        for prompt in own_prompts()
    ]
    return [tuple(ids) for ids in encoded if 0 < len(ids) <= LONGEST_PROMPT][:NUM_PROMPTS]


@torch.inference_mode()
def gather(
    target: Target, tap_layers: Sequence[int], prompts: Sequence[tuple[int, ...]]
) -> Iterator[Text]:
    """One text per prompt. `tap_layers` are those the target was loaded with."""
    engine = Engine(target, None, FullSchedule())
    requests = [Request(prompt, stop=StopConfig(max_tokens=NUM_TOKENS)) for prompt in prompts]
    for event in engine.run(requests):
        if isinstance(event, Finished):
            prompt = requests[event.request_id].prompt_ids
            ids = torch.tensor((*prompt, *event.token_ids), device=target.device)
            seen = target.verify([target.open()], [ids])
            taps = seen.taps.unflatten(-1, (len(tap_layers), -1)).unbind(1)
            yield Text(ids, len(prompt), seen.logits, dict(zip(tap_layers, taps, strict=True)))


def normed_taps(target: Target) -> Callable[[torch.Tensor], torch.Tensor]:
    """The target's final norm, or one without a scale if that is not accessible."""
    if isinstance(target, DenseTarget):
        return target.final_norm
    norm = final_norm(getattr(target, "model", None))
    return norm or (lambda taps: rms_norm(taps, torch.ones_like(taps[0]), 1e-6))


def target_theta(directory: Path) -> float:
    return rope_theta(read_config(directory).get_text_config())


def possible_masks(directory: Path, mask_token_id: int, vocab_size: int) -> list[int]:
    """Candidates for the mask token: neighbours, the tokenizer's mask and special tokens, last
    ids."""
    near = [mask_token_id - 1, mask_token_id + 1]
    try:
        tokenizer: Any = load_tokenizer(directory)
    except CheckpointError:
        return [*near, vocab_size - 1]
    added = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()}
    called = [index for index, text in added.items() if "mask" in text.lower()]
    special = [i for i in (tokenizer.pad_token_id, tokenizer.unk_token_id) if i is not None]
    ends = [len(tokenizer), vocab_size - 1, *sorted(added, reverse=True)]
    return list(dict.fromkeys((*near, *called, *special, *ends)))[:MAX_MASKS]
