"""DSpark beside a target in stored codes: int8 copies of the head on the CPU's kernels.

The block's layers are one call, its choices left to right are another, and so is what newly
committed tokens add to the context.
"""

from collections.abc import MutableMapping, Sequence
from typing import ClassVar

import torch

from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.drafters.base import Chooser, Proposals, Race
from dspark.drafters.dspark import DSparkDrafter, DSparkSlot
from dspark.drafters.head_drafter import HeadDrafter, TargetTables
from dspark.drafters.stored_head import StoredHead
from dspark.drafters.vocabulary import OWN_TOKENS, OutputHead
from dspark.kvcache.page_pool import PagedPool
from dspark.models.draft_layer import DraftAttention, DraftLayer
from dspark.models.sequential_heads import MarkovHead
from dspark_kernels.cpu.context_pass import Context, ContextLayer, ContextPass
from dspark_kernels.cpu.decoder_pass import (
    MAX_ROWS,
    Decoder,
    DecoderLayer,
    DecoderPass,
    Projection,
)
from dspark_kernels.cpu.output_head import StoredOutputHead
from dspark_kernels.cpu.pool import Job
from dspark_kernels.cpu.quantize import quantize_q8_0
from dspark_kernels.cpu.rope_write import Heads
from dspark_kernels.cpu.rounded import GROUP
from dspark_kernels.cpu.runtime import Runtime, current
from dspark_kernels.cpu.sequential_head import (
    ChosenRows,
    Noise,
    OwnColumns,
    SequentialPass,
    sequential_head,
)
from dspark_kernels.cpu.step_words import MAX_HEAD_DIM, PassRows
from dspark_kernels.cpu.weight_table import Table, WeightTable
from dspark_kernels.host_memory import give_back_freed


class StoredDSparkDrafter(StoredHead, DSparkDrafter):
    """A row has the same bits in any company, as the target's have."""

    of_numbers: ClassVar[type[HeadDrafter]] = DSparkDrafter

    @classmethod
    def supports(cls, config: DSparkConfig, tables: TargetTables) -> bool:  # type: ignore[override]
        return isinstance(tables.embedding, WeightTable) and _fits(config) and current() is not None

    def __init__(
        self,
        config: DSparkConfig,
        tensors: MutableMapping[str, torch.Tensor],
        embedding: Table,
        output_head: OutputHead,
        *,
        draft_vocabulary: torch.Tensor | None = None,
    ) -> None:
        parts = (config, tensors, embedding, output_head)
        super().__init__(*parts, draft_vocabulary=draft_vocabulary)
        sizes = (config.num_layers, config.num_kv_heads, config.head_dim)
        self.pool = PagedPool(*sizes, self.device, self.dtype, num_pages=1)
        del self._pool  # of numbers

    @property
    def _contexts(self) -> PagedPool:
        return self.pool

    def _prepack_head(self, *, is_reduced: bool) -> None:
        runtime = current()
        assert runtime is not None, "supports() asked for it"
        self._runtime = runtime
        assert isinstance(self._embedding, WeightTable), "a head of the target's own vocabulary"
        norm, context_norm = self._head.norm, self._head.hidden_norm
        joined = quantize_q8_0(self._head.fc.weight)
        del self._head.fc  # the copies are multiplied with
        layers, contexts = [], []
        while len(self._head.layers):  # each is freed before the next is copied
            layer = self._head.layers.pop(0)
            layers.append(_layer(layer))
            contexts.append(_context_layer(layer.self_attn))
            del layer
            give_back_freed()
        decoder = Decoder(self._embedding.stored, layers, norm.weight, norm.eps)
        context = Context(joined, context_norm.weight, context_norm.eps, contexts)
        self._context_pass = ContextPass(runtime, context)
        self._prepare_choices(runtime, decoder)
        super()._prepack_head(is_reduced=is_reduced)

    def _prepare_choices(self, runtime: Runtime, decoder: Decoder) -> None:
        """By the CPU's kernel if the output head is in codes, logits are not soft-capped, and the
        sequential head is a plain Markov table or absent (DFlash)."""
        config, markov = self.config, self._head.markov_head
        fixed = self._vocabulary.fixed()
        self._sequential: SequentialPass | None = None
        is_known = fixed.table is None or type(markov) is MarkovHead
        is_ours = is_known and isinstance(fixed.output_head, StoredOutputHead)
        if not is_ours or config.final_logit_softcapping is not None:
            self._block_pass = DecoderPass(runtime, decoder)
            return
        weight, confidence = fixed.output_head.weight.stored, self._head.confidence_head
        num_columns = weight.num_columns + OWN_TOKENS
        self._logits = torch.empty(MAX_ROWS, num_columns)
        self._block_pass = DecoderPass(runtime, decoder, weight, num_columns)
        tables, part = None, None
        if fixed.table is not None:
            tables = (markov.markov_w1.weight.detach(), fixed.table)
        if confidence is not None:
            part = (confidence.proj.weight[0].float(), float(confidence.proj.bias))
        width = config.hidden_size
        self._sequential = SequentialPass(
            runtime,
            sequential_head(tables, fixed.ids, part, width),
            hidden_size=width,
            row_columns=num_columns,
            block_size=config.block_size,
            block_rows=config.block_rows,
            most=MAX_ROWS // config.block_rows,
        )
        self._fixed_ids = fixed.ids

    def extend(
        self,
        slots: Sequence[DSparkSlot],
        token_ids: Sequence[torch.Tensor],
        taps: Sequence[torch.Tensor],
    ) -> None:
        """As Drafter.extend."""
        sizes, whole = [len(tap) for tap in taps], torch.cat(list(taps))
        contexts = [slot.context for slot in slots]
        rows = self.pool.rows_on_cpu(contexts, sizes, causal=True)
        for at in range(0, len(whole), MAX_ROWS):
            part = slice(at, at + MAX_ROWS)
            self._runtime.run_jobs(self._job_of_taps(rows.part(part), whole[part]))
        self.keep(slots, [ids.tolist() for ids in token_ids])

    def job_of_taps(
        self, slots: Sequence[DSparkSlot], sizes: Sequence[int], taps: torch.Tensor
    ) -> Job:
        """As JoiningDrafter.job_of_taps."""
        contexts = [slot.context for slot in slots]
        return self._job_of_taps(self.pool.rows_on_cpu(contexts, sizes, causal=True), taps)

    def _job_of_taps(self, rows: PassRows, taps: torch.Tensor) -> Job:
        rotary = self._rotary.upto(max(rows.positions))
        return self._context_pass.job(taps, self.pool.on_cpu(), rows, rotary)

    def keep(self, slots: Sequence[DSparkSlot], token_ids: Sequence[Sequence[int]]) -> None:
        """As JoiningDrafter.keep."""
        for slot, ids in zip(slots, token_ids, strict=True):
            slot.context.length += len(ids)
            self._vocabulary.extend(slot.own, ids)

    def propose(
        self, slots: Sequence[DSparkSlot], anchors: torch.Tensor, chooser: Chooser
    ) -> Proposals:
        """As Drafter.propose."""
        races = None if self._sequential is None else chooser.races(self.block_size)
        if races is None:
            return super().propose(slots, anchors, chooser)
        at_once = MAX_ROWS // self.config.block_rows
        spans = [slice(start, start + at_once) for start in range(0, len(slots), at_once)]
        ids = anchors.tolist()
        tokens, logits = [], []
        told: list[list[float]] = []
        for span in spans:
            part = self._choose(slots[span], ids[span], races[span], told)
            tokens += part.tokens
            logits += part.confidences
        confidences = None
        if logits:
            confidences = torch.tensor(self._calibrator.of_rows(logits, chooser.are_greedy))
        no_probs = [None] * len(slots)
        return Proposals(torch.tensor(tokens), no_probs, confidences, chosen_probs=told)

    def _choose(
        self,
        slots: Sequence[DSparkSlot],
        anchors: Sequence[int],
        races: Sequence[Race],
        told: list[list[float]],
    ) -> ChosenRows:
        """Of as many requests as a pass has rows for; `told` gets their drafts' probabilities."""
        assert self._sequential is not None
        block = self._job_of_blocks(slots, anchors, self._logits)
        owns = self._vocabulary.own_columns([slot.own for slot in slots])
        parts = (self._block_pass.hidden, self._logits, anchors, owns, self._noise(races, owns))
        self._runtime.run_jobs(block, self._sequential.job(*parts))
        chosen = self._sequential.chosen(len(slots))
        for at, (race, own, ids) in enumerate(zip(races, owns, chosen.tokens, strict=True)):
            told.append(self._chosen_probs(at, ids, own, race) if race.tells_probs else [])
        return chosen

    def _chosen_probs(
        self, at: int, ids: Sequence[int], own: OwnColumns, race: Race
    ) -> list[float]:
        """Of one request's drafts [K], by the logits that the choice has left behind."""
        end, own_at = (at + 1) * self.config.block_rows, self._logits.shape[1] - OWN_TOKENS
        rows = self._logits[end - self.block_size : end]
        mine = rows[:, own_at : own_at + own.num_used]
        logits = torch.cat([rows[:, : len(self._fixed_ids)], mine], dim=1) / race.temperature
        known = torch.cat([self._fixed_ids, own.ids[: own.num_used]])
        is_chosen = known == torch.tensor(ids).unsqueeze(1)
        best = logits.masked_fill(~is_chosen, -torch.inf).amax(dim=1)
        return (best - logits.logsumexp(dim=1)).exp().tolist()

    def _noise(self, races: Sequence[Race], owns: Sequence[OwnColumns]) -> Noise | None:
        """Of the columns; None if all requests are greedy."""
        if all(race.noise is None for race in races):
            return None
        ids, own_at = self._fixed_ids, self._logits.shape[1] - OWN_TOKENS
        out = torch.zeros(len(races), self.config.block_rows, self._logits.shape[1])
        for rows, race, own in zip(out[:, -self.block_size :], races, owns, strict=True):
            if race.noise is not None:
                rows[:, : len(ids)] = race.noise(ids)
                rows[:, own_at : own_at + own.num_used] = race.noise(own.ids[: own.num_used])
        return Noise(out, torch.tensor([1.0 / race.temperature for race in races]))

    def _backbone(self, slots: Sequence[DSparkSlot], anchors: torch.Tensor) -> torch.Tensor:
        """Whole blocks, as many as a pass has rows for."""
        at_once, anchor_ids = MAX_ROWS // self.config.block_rows, anchors.tolist()
        parts = []
        for start in range(0, len(slots), at_once):
            span = slice(start, start + at_once)
            self._runtime.run_jobs(self._job_of_blocks(slots[span], anchor_ids[span]))
            count = len(slots[span]) * self.config.block_rows
            parts.append(self._block_pass.hidden[:count].clone())
        return _joined(parts)

    def _job_of_blocks(
        self,
        slots: Sequence[DSparkSlot],
        anchors: Sequence[int],
        logits: torch.Tensor | None = None,
    ) -> Job:
        """Every row of a block sees all of it."""
        num_rows, mask = self.config.block_rows, self.config.mask_token_id
        tokens = [token for anchor in anchors for token in (anchor, *[mask] * (num_rows - 1))]
        contexts, sizes = [slot.context for slot in slots], [num_rows] * len(slots)
        rows = self.pool.rows_on_cpu(contexts, sizes, tokens, causal=False)
        rotary = self._rotary.upto(max(rows.positions))
        return self._block_pass.job(rows, self.pool.on_cpu(), rotary, logits)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def stored_kernels(config: DSparkConfig) -> list[str]:
    """Functions that the head needs beside a target in codes, one of each library; none if it runs
    in numbers there."""
    if not _fits(config):
        return []
    attend = f"attend_{config.head_dim}_{config.num_heads // config.num_kv_heads}"
    return ["rope_write", attend, "matrix_q8_0"]


def _fits(config: DSparkConfig) -> bool:
    """Whether the kernels can run a head of these sizes."""
    widths = (config.hidden_size, config.intermediate_size, config.head_dim)
    return (
        config.family == "qwen3"
        and not config.attention_bias
        and all(width % GROUP == 0 for width in widths)
        and config.head_dim <= MAX_HEAD_DIM
        and config.block_rows <= MAX_ROWS
    )


def _small(*weights: torch.Tensor) -> Projection:
    """An int8 copy of weights of one input, side by side."""
    return Projection((quantize_q8_0(torch.cat(weights)),))


def _heads(attention: DraftAttention, num_heads: int) -> Heads:
    return Heads(
        num_heads,
        attention.num_kv_heads,
        attention.head_dim,
        attention.scale,
        (attention.q_norm.weight, attention.k_norm.weight, attention.k_norm.eps),
    )


def _layer(layer: DraftLayer) -> DecoderLayer:
    attention, mlp = layer.self_attn, layer.mlp
    return DecoderLayer(
        input_norm=layer.input_layernorm.weight,
        qkv=_small(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight),
        heads=_heads(attention, attention.num_heads),
        output=_small(attention.o_proj.weight),
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=_small(mlp.gate_proj.weight, mlp.up_proj.weight),
        down=_small(mlp.down_proj.weight),
    )


def _context_layer(attention: DraftAttention) -> ContextLayer:
    both = _small(attention.k_proj.weight, attention.v_proj.weight)
    return ContextLayer(both, _heads(attention, 0))
