"""The DSpark head inside a DeepSeek-V4 target: blocks of the target's own kind over a short window.

Not verified on the released weights, which have not been run with it. FP8 matrices are multiplied
de-quantised; engines with FP8 kernels round the inputs as well.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F

from dspark.checkpoints.deepseek_v4 import DeepseekV4Weights, read_own_head
from dspark.checkpoints.deepseek_v4_config import DeepseekV4HeadConfig, dense_shapes
from dspark.checkpoints.model_folder import Folder
from dspark.config import DraftWeights
from dspark.drafters.base import Chooser, Proposals
from dspark.drafters.head_drafter import TargetTables, stack_present
from dspark.models.deepseek_v4.experts import Experts
from dspark.models.deepseek_v4.norm_rotate import norm
from dspark.models.deepseek_v4.streams import StreamMixer, collapse, taken_up
from dspark.models.deepseek_v4.window_attention import WindowAttention
from dspark_kernels.cpu.weight_table import Table


@dataclass(slots=True)
class DeepseekV4Slot:
    """One request: the keys [stages, n, D] of its last context rows, and its context length."""

    keys: torch.Tensor
    length: int = 0


class DeepseekV4Drafter:
    """The head with its target's embedding [V, H] and output head [N, H] -> [N, V]."""

    takes_small_weights: ClassVar[bool] = False

    @classmethod
    def supports(cls, config: DeepseekV4HeadConfig, tables: TargetTables) -> bool:
        return True

    @classmethod
    def load(
        cls, folder: Folder, tables: TargetTables, weights: DraftWeights
    ) -> "DeepseekV4Drafter":
        """From the target's own files."""
        maps = tables.device.type == "cpu" and tables.dtype == torch.float32
        head = read_own_head(folder, device=tables.device, dtype=tables.dtype, maps_experts=maps)
        return cls(*head, tables.embedding, tables.output_head)

    def __init__(
        self,
        config: DeepseekV4HeadConfig,
        weights: DeepseekV4Weights,
        embedding: Table,
        output_head: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.config = config
        self.block_size = config.block_size
        self.target_layer_ids = config.target_layer_ids
        self.device, self.dtype = embedding.device, embedding.dtype
        self.num_weights = weights_a_block(config)
        self._embedding, self._output_head = embedding, output_head
        self._first = _below(weights.dense, "mtp.0.")
        self._last = _below(weights.dense, f"mtp.{config.num_stages - 1}.")
        self._stages = [_Stage(config, weights, stage) for stage in range(config.num_stages)]
        exponent = torch.arange(0, config.rope_dim, 2, device=self.device).float()
        self._frequencies = config.rope_theta ** (-exponent / config.rope_dim)

    def open(self) -> DeepseekV4Slot:
        shape = (self.config.num_stages, 0, self.config.head_dim)
        return DeepseekV4Slot(torch.empty(shape, device=self.device, dtype=self.dtype))

    def close(self, slot: DeepseekV4Slot) -> None:
        pass

    def fork(self, slot: DeepseekV4Slot, length: int) -> DeepseekV4Slot:
        fresh = DeepseekV4Slot(slot.keys, slot.length)
        self.truncate(fresh, length)
        return fresh

    def truncate(self, slot: DeepseekV4Slot, length: int) -> None:
        """Rows that left the window cannot come back; V4 targets never need them."""
        surplus = max(0, slot.length - length)
        slot.keys = slot.keys[:, : max(0, slot.keys.shape[1] - surplus)]
        slot.length -= surplus

    def extend(
        self,
        slots: Sequence[DeepseekV4Slot],
        token_ids: Sequence[torch.Tensor],
        taps: Sequence[torch.Tensor],
    ) -> None:
        """As Drafter.extend."""
        config = self.config
        for slot, rows in zip(slots, taps, strict=True):
            slot.length += len(rows)
            seen = rows[-config.window :].to(self.dtype)
            features = F.linear(seen, self._first["main_proj.weight"])
            features = norm(features, self._first["main_norm.weight"], config.rms_norm_eps)
            angles = self._angles(slot.length - len(seen), len(seen))
            new = torch.stack([stage.attention.keys(features, angles) for stage in self._stages])
            slot.keys = torch.cat([slot.keys, new], dim=1)[:, -config.window :]

    def propose(
        self, slots: Sequence[DeepseekV4Slot], anchors: torch.Tensor, chooser: Chooser
    ) -> Proposals:
        """As Drafter.propose."""
        hidden = self._backbone(slots, anchors)
        normed = norm(hidden, self._last["norm.weight"], self.config.rms_norm_eps)
        logits = self._output_head(normed.flatten(0, 1)).view(*hidden.shape[:2], -1).float()
        embed, project, confidence = (
            self._last[f"{name}.weight"]
            for name in ("markov_head.markov_w1", "markov_head.markov_w2", "confidence_head.proj")
        )
        return choose_left_to_right(
            (logits, hidden.float()), anchors, chooser, embed, _linear(project), confidence
        )

    def _backbone(self, slots: Sequence[DeepseekV4Slot], anchors: torch.Tensor) -> torch.Tensor:
        """anchors [R] -> [R, K, H], before the final norm, as the confidence head needs."""
        config = self.config
        ids = torch.full((len(slots), config.block_size), config.mask_token_id, device=self.device)
        ids[:, 0] = anchors
        streams = self._embedding[ids].unsqueeze(2).repeat(1, 1, config.num_streams, 1)
        angles = torch.stack([self._angles(slot.length, config.block_size) for slot in slots])
        windows, is_there = _side_by_side([slot.keys for slot in slots])
        for stage, window in zip(self._stages, windows, strict=True):
            streams = stage(streams, angles, window, is_there)
        return collapse(streams, config, self._last, _linear(self._last["hc_head_fn"]))

    def _angles(self, start: int, count: int) -> torch.Tensor:
        positions = torch.arange(start, start + count, device=self.device)
        return positions.unsqueeze(-1).float() * self._frequencies


class _Stage:
    """One block of the backbone."""

    def __init__(
        self, config: DeepseekV4HeadConfig, weights: DeepseekV4Weights, index: int
    ) -> None:
        stage_tensors = _below(weights.dense, f"mtp.{index}.")
        self.attention = WindowAttention(config, stage_tensors)
        self._experts = Experts(config, stage_tensors, weights.experts[index])
        self._around_attention, self._around_experts = (
            StreamMixer(config, stage_tensors, name, _linear(stage_tensors[f"{name}_fn"]))
            for name in ("hc_attn", "hc_ffn")
        )
        self._attention_norm, self._experts_norm = (
            stage_tensors["attn_norm.weight"],
            stage_tensors["ffn_norm.weight"],
        )
        self._eps = config.rms_norm_eps

    def __call__(
        self,
        streams: torch.Tensor,
        angles: torch.Tensor,
        window: torch.Tensor,
        is_there: torch.Tensor,
    ) -> torch.Tensor:
        """streams [R, K, S, H] -> the same."""
        x, post, mix = self._around_attention(streams)
        x = norm(x, self._attention_norm, self._eps)
        streams = taken_up(streams, self.attention(x, angles, window, is_there), post, mix)
        x, post, mix = self._around_experts(streams)
        x = norm(x, self._experts_norm, self._eps)
        out = self._experts(x.flatten(0, 1)).view_as(x)
        return taken_up(streams, out, post, mix)


def choose_left_to_right(
    rows: tuple[torch.Tensor, torch.Tensor],
    anchors: torch.Tensor,
    chooser: Chooser,
    embed: Table,
    project: Callable[[torch.Tensor], torch.Tensor],
    confidence: torch.Tensor,
) -> Proposals:
    """`rows`: logits [R, K, V] and hidden states [R, K, H]. Each position sees the token chosen
    before it, by its row of `embed` [V, r] and `project`: [R, r] -> [R, V]; confidence
    [1, H + r]."""
    base, hidden = rows
    previous = anchors
    ids, probs, confidences = [], [], []
    for k in range(base.shape[1]):
        embedding = embed[previous]
        features = torch.cat([hidden[:, k], embedding], dim=-1)
        confidences.append(F.linear(features, confidence).squeeze(-1).sigmoid())
        previous, chosen_probs = chooser.choose(base[:, k] + project(embedding))
        ids.append(previous)
        probs.append(chosen_probs)
    return Proposals(
        token_ids=torch.stack(ids, dim=1),
        probs=[stack_present(request_probs) for request_probs in zip(*probs, strict=True)],
        confidences=torch.stack(confidences, dim=1),
    )


def _linear(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return partial(F.linear, weight=weight)


def _below(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}


def _side_by_side(keys: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """R windows [stages, n, D] -> [stages, R, W, D], and which rows exist [R, W]."""
    width = max(window.shape[1] for window in keys)
    padded = torch.stack([F.pad(w, (0, 0, 0, width - w.shape[1])) for w in keys], dim=1)
    sizes = torch.tensor([window.shape[1] for window in keys], device=padded.device)
    return padded, torch.arange(width, device=padded.device) < sizes.unsqueeze(-1)


def weights_a_block(config: DeepseekV4HeadConfig) -> int:
    """Weights read per drafted block, if no two of its rows use the same expert."""
    shapes = dense_shapes(config).items()
    dense = sum(math.prod(shape) for name, shape in shapes if "markov" not in name)
    expert = 3 * config.expert_size * config.hidden_size
    num_experts = min(config.num_experts, config.block_size * config.experts_per_token)
    markov = config.markov_rank * config.block_size
    columns = config.vocab_size * (config.hidden_size + markov)
    return dense + config.num_stages * num_experts * expert + columns
