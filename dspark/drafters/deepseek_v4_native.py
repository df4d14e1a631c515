"""The DSpark head inside a DeepSeek-V4 target on the CPU's kernels: weights in the bytes of their
files, a block's stages one program."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from dspark.checkpoints.deepseek_v4 import MappedHead, read_mapped_head
from dspark.checkpoints.deepseek_v4_config import DeepseekV4HeadConfig
from dspark.checkpoints.model_folder import Folder
from dspark.config import DraftWeights
from dspark.drafters.base import Chooser, Drafter, Proposals
from dspark.drafters.deepseek_v4 import DeepseekV4Drafter, choose_left_to_right, weights_a_block
from dspark.drafters.head_drafter import TargetTables
from dspark.models.deepseek_v4.draft_pass import Context, DraftPass, runs_stages
from dspark.models.deepseek_v4.float_experts import feed_experts
from dspark.models.expert_store import ExpertStore, store_beside, with_store
from dspark_kernels.cpu.file_weight import FileTable
from dspark_kernels.cpu.float_matrix import multiply_floats
from dspark_kernels.cpu.runtime import current


@dataclass(slots=True)
class NativeSlot:
    """One request: rings of its stages' keys, the first position in them, its context length."""

    rings: torch.Tensor
    first: int = 0
    length: int = 0

    def context(self) -> Context:
        return Context(self.rings, self.first, self.length)


class NativeDeepseekV4Drafter:
    """Drafts as DeepseekV4Drafter does, up to the order of sums, a row with the same bits in any
    company; rows meet routed experts in 8 bits where the target's do."""

    takes_small_weights: ClassVar[bool] = False

    @classmethod
    def supports(cls, config: DeepseekV4HeadConfig, tables: TargetTables) -> bool:
        is_mapped = isinstance(tables.embedding, FileTable) and tables.device.type == "cpu"
        return is_mapped and current() is not None and runs_stages(config)

    @classmethod
    def load(cls, folder: Folder, tables: TargetTables, weights: DraftWeights) -> Drafter:
        """From the target's own files."""
        if weights == "bf16":  # in numbers
            return DeepseekV4Drafter.load(folder, tables, weights)
        return cls(*read_mapped_head(folder), tables)

    def __init__(
        self, config: DeepseekV4HeadConfig, weights: MappedHead, tables: TargetTables
    ) -> None:
        runtime = current()
        assert runtime is not None, "supports() asked for it"
        self.config, self.device, self.dtype = config, tables.device, tables.dtype
        self.block_size, self.target_layer_ids = config.block_size, config.target_layer_ids
        self.num_weights = weights_a_block(config)
        self.expert_store: ExpertStore | None = None
        if tables.expert_store is not None:
            layers = [stage.experts for stage in weights.stages.blocks]
            self.expert_store = store_beside(tables.expert_store, layers)
        if self.expert_store is not None:
            stages = with_store(weights.stages, self.expert_store)
            weights = replace(weights, stages=stages)
        feed = None if tables.rounds else feed_experts
        self._embedding, self._output_head = tables.embedding, tables.output_head
        self._pass = DraftPass(config, weights, feed, runtime)
        self._markov, self._confidence = FileTable(weights.markov_w1), weights.confidence
        self._markov_w2 = weights.markov_w2

    def open(self) -> NativeSlot:
        return NativeSlot(torch.empty(self._pass.num_values))

    def close(self, slot: NativeSlot) -> None:
        pass

    def fork(self, slot: NativeSlot, length: int) -> NativeSlot:
        fresh = replace(slot, rings=slot.rings.clone())
        self.truncate(fresh, length)
        return fresh

    def truncate(self, slot: NativeSlot, length: int) -> None:
        """Rows that left the rings cannot come back; V4 targets never need them."""
        slot.first = max(slot.first, slot.length - self._pass.cells)
        slot.length = min(slot.length, length)
        slot.first = min(slot.first, slot.length)

    def extend(
        self,
        slots: Sequence[NativeSlot],
        token_ids: Sequence[torch.Tensor],
        taps: Sequence[torch.Tensor],
    ) -> None:
        """As Drafter.extend."""
        for slot, rows in zip(slots, taps, strict=True):
            if (skipped := max(0, len(rows) - self._pass.cells)) > 0:
                slot.first = slot.length = slot.length + skipped
            self._pass.take_in(slot.context(), rows[skipped:])
            slot.length += len(rows) - skipped

    def propose(
        self, slots: Sequence[NativeSlot], anchors: torch.Tensor, chooser: Chooser
    ) -> Proposals:
        """As Drafter.propose."""
        size = self.block_size
        ids = torch.full((len(slots), size), self.config.mask_token_id)
        ids[:, 0] = anchors
        if self.expert_store is not None:
            self.expert_store.between_passes()
        embedded = self._embedding[ids.flatten()]
        normed, hidden = self._pass.run(embedded, [slot.context() for slot in slots])
        if self.expert_store is not None:
            self.expert_store.note(self._pass.routes(len(embedded)))
        rows = (self._output_head(normed).unflatten(0, (-1, size)), hidden.unflatten(0, (-1, size)))
        return choose_left_to_right(
            rows, anchors, chooser, self._markov, self._bias, self._confidence
        )

    def _bias(self, embedding: torch.Tensor) -> torch.Tensor:
        """[R, r] -> [R, V]."""
        return multiply_floats(embedding, self._markov_w2)
