"""A head run under a given convention, with the target's own tokens as input."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dspark.checkpoints.deepspec import read_draft_vocabulary
from dspark.checkpoints.heads import read_draft
from dspark.drafters.base import Drafter
from dspark.drafters.head_drafter import is_same
from dspark.drafters.kinds import kind_of
from dspark.probe.material import Text, normed_taps
from dspark.probe.misreadings import Convention
from dspark.targets.base import Target
from dspark_kernels import RotaryTable

DEPTH = 4  # drafts of a block that are compared


@dataclass(frozen=True, slots=True)
class Scores:
    """[texts, anchors, DEPTH]; NaN if nothing was drafted. `agrees` is 1 for the target's likeliest
    token, `accepts` the acceptance of rejection sampling at temperature 1."""

    accepts: torch.Tensor
    agrees: torch.Tensor


class ProbedHead:
    """A head with its target; each convention gets its own drafter on shared weights."""

    def __init__(self, directory: Path, target: Target) -> None:
        self.config, tensors = read_draft(directory)
        spec = target.spec
        self.config.check_target(
            vocab_size=spec.vocab_size, hidden_size=spec.hidden_size, num_layers=spec.num_layers
        )
        self._tensors = {
            name: tensor.to(target.device, target.dtype if tensor.is_floating_point() else None)
            for name, tensor in tensors.items()
        }
        shared = {
            "embed_tokens.weight": target.embedding(),
            "lm_head.weight": target.output_head().weight,
        }
        for name, of_target in shared.items():
            if name in self._tensors and is_same(
                self._tensors[name], of_target, self._tensors[name].dtype
            ):
                del self._tensors[name]  # or every drafter would compare them again
        vocabulary = read_draft_vocabulary(directory, self.config.vocab_size)
        self._draft_vocabulary = None if vocabulary is None else vocabulary.to(target.device)
        self._target = target
        self._normed = normed_taps(target)
        self.depth = min(DEPTH, self.config.block_size)

    @torch.inference_mode()
    def scores(
        self, texts: Sequence[Text], anchors: Sequence[Sequence[int]], convention: Convention
    ) -> Scores:
        """`anchors` of each text descend: the context is rolled back from one to the next."""
        drafter, rotary = self._drafter(convention)
        slots = [drafter.open() for _ in texts]
        for slot, text in zip(slots, texts, strict=True):
            ids = text.token_ids.roll(-convention.row_shift)
            drafter.extend([slot], [ids], [self._taps(text, convention)])
        rotary.shift = convention.position_shift
        shape = (len(texts), max(map(len, anchors)), self.depth)
        accepts, agrees = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
        for index in range(shape[1]):
            rows = [row for row, places in enumerate(anchors) if index < len(places)]
            places = [anchors[row][index] for row in rows]
            for row, place in zip(rows, places, strict=True):
                drafter.truncate(slots[row], place)
            chosen = [texts[row] for row in rows]
            probs = self._draft(drafter, [slots[row] for row in rows], chosen, places, convention)
            for row, text, place, drafted in zip(rows, chosen, places, probs, strict=True):
                accepts[row, index], agrees[row, index] = self._judge(
                    text, place, drafted, convention.block_shift
                )
        return Scores(accepts, agrees)

    def _draft(
        self,
        drafter: Drafter,
        slots: Sequence[Any],
        texts: Sequence[Text],
        places: Sequence[int],
        convention: Convention,
    ) -> Sequence[torch.Tensor | None]:
        """Distributions [K, V] of a block at one place of each text."""
        device = self._target.device
        offsets = torch.arange(1, self.config.block_size + 1, device=device)
        offsets += convention.previous_shift + convention.row_shift - convention.block_shift
        shown = [text.tokens(offsets + place) for text, place in zip(texts, places, strict=True)]
        anchors = [
            text.tokens(torch.tensor(place + convention.row_shift, device=device))
            for text, place in zip(texts, places, strict=True)
        ]
        chooser = _Forced(torch.stack(shown))
        return drafter.propose(slots, torch.stack(anchors), chooser).probs

    def _judge(
        self, text: Text, place: int, drafted: torch.Tensor | None, block_shift: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """drafted [K, V] -> accepted shares and agreements [depth] of the drafts behind `place`."""
        assert drafted is not None
        target_probs = text.logits[place : place + self.depth].float().softmax(-1)
        accepts = torch.full((self.depth,), torch.nan)
        agrees = accepts.clone()
        for k in range(self.depth):
            if 0 <= k + block_shift < len(drafted):
                probs = drafted[k + block_shift]
                accepts[k] = torch.minimum(probs, target_probs[k]).sum()
                agrees[k] = float(probs.argmax() == target_probs[k].argmax())
        return accepts, agrees

    def _taps(self, text: Text, convention: Convention) -> torch.Tensor:
        layers = convention.tap_layers or self.config.target_layer_ids
        taps = [text.taps[layer] for layer in layers]
        return torch.cat([self._normed(t) for t in taps] if convention.norms_taps else taps, -1)

    def _drafter(self, convention: Convention) -> tuple[Drafter, "_ShiftedRotary"]:
        config = convention.applied_to(self.config)
        joined = kind_of(config).joined
        assert joined is not None, "every head with files of its own can be probed"
        drafter: Any = joined(
            config,
            self._renamed(convention),
            self._target.embedding(),
            self._target.output_head(),
            draft_vocabulary=self._draft_vocabulary,
            prepack=False,
        )
        _leave_out(drafter._head, convention.without)
        table = drafter._rotary
        if not convention.has_rope:
            table = RotaryTable(torch.zeros(config.head_dim // 2), 1.0, self._target.dtype)
        rotary = _ShiftedRotary(table)
        drafter._rotary = rotary
        # shown tokens are ids already
        drafter._vocabulary.token_ids = lambda columns, owns: columns
        drafter._tokens_at = lambda candidates, token_ids: token_ids
        return drafter, rotary

    def _renamed(self, convention: Convention) -> dict[str, torch.Tensor]:
        if not convention.swaps_markov:
            return dict(self._tensors)
        swapped = {"markov_w1": "markov_w2", "markov_w2": "markov_w1"}
        return {
            ".".join(swapped.get(part, part) for part in name.split(".")): tensor
            for name, tensor in self._tensors.items()
        }


class _Forced:
    """Chooses the given tokens [R, K] and records every distribution."""

    def __init__(self, token_ids: torch.Tensor) -> None:
        self._steps = iter(token_ids.unbind(1))
        self.are_greedy = [True] * len(token_ids)

    def races(self, num_places: int) -> None:
        return None

    def choose(
        self, logits: torch.Tensor, token_ids: object = None
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
        return next(self._steps), list(logits.float().softmax(-1))


class _ShiftedRotary:
    """A rotary table read with an offset of `shift` positions."""

    def __init__(self, table: RotaryTable) -> None:
        self._table = table
        self.shift = 0

    def at(self, positions: torch.Tensor, max_position: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._table.at(positions + self.shift, max_position + self.shift)


def _leave_out(module: nn.Module, names: Sequence[str]) -> None:
    """Turns every submodule of these names into the identity."""
    for name, child in module.named_children():
        if name in names:
            setattr(module, name, nn.Identity())
        else:
            _leave_out(child, names)
