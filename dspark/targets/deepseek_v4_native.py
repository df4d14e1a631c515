"""DeepSeek-V4 as it is published: our own forward over weights mapped from their files, on a CPU,
or on a card with as many experts there as fit.

What is always read (FP8 and bfloat16) meets rows in float32. Routed experts stay in FP4; rows meet
them in float32 or, faster and rounded as stated in `rounded_experts`, in 8 bits.
"""

import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from dspark.checkpoints.deepseek_v4_cache_layout import MAX_ROWS
from dspark.checkpoints.deepseek_v4_target import HEAD_PREFIX, TargetWeights, read_target
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.checkpoints.files import one_line
from dspark.checkpoints.model_folder import Folder, ModelFolder
from dspark.checkpoints.safetensors_dir import tensor_infos
from dspark.config import EXPERTS_PREFILL_CHUNK
from dspark.errors import CheckpointError, MemoryFullError
from dspark.kvcache.page_pool import PagedPool
from dspark.kvcache.row_pool import KVSlot
from dspark.machine import free_memory
from dspark.models.deepseek_v4.cache import RequestCaches
from dspark.models.deepseek_v4.decoder import Decoder
from dspark.models.deepseek_v4.float_experts import feed_experts
from dspark.models.deepseek_v4.native_pass import FeedExperts
from dspark.models.deepseek_v4.rounded_experts import feed_rounded
from dspark.models.expert_store import (
    ExpertStore,
    expert_bytes,
    store_for,
    uses_of,
    with_store,
)
from dspark.targets.base import Pass, TargetSpec
from dspark.targets.expert_use import ExpertShape, ExpertUse, expert_use
from dspark.targets.stop_tokens import stop_tokens
from dspark_kernels.cpu.file_weight import FileTable
from dspark_kernels.cpu.float_matrix import multiply_floats

DRAFT_EXPERT = re.compile(r"mtp\.\d+\.ffn\.experts\.\d+\.w1\.weight")
if TYPE_CHECKING:  # what runs on a card
    from dspark.models.deepseek_v4.card_decoder import CardDecoder


class DeepseekV4Target:
    """A target whose requests share passes; rolling back is setting a length. `kinds`: the formats
    that rows are rounded for, none if they meet all weights in float32."""

    def __init__(
        self,
        config: DeepseekV4TargetConfig,
        weights: TargetWeights,
        *,
        tap_layers: tuple[int, ...] = (),
        stop_token_ids: frozenset[int] = frozenset(),
        feed: FeedExperts = feed_experts,
        store: ExpertStore | None = None,
        streams: bool = False,
    ) -> None:
        """`store`: of the weights' routed experts, where memory does not hold all; that of a card
        puts the target there, with rows of 8 bits. `streams`: long prompts on a card stream whole
        layers, with two of them in its memory."""
        self.expert_store = store
        on_card = store is not None and store.is_on_card
        if store is not None and not on_card:
            weights = with_store(weights, store)
        self.kinds = ("fp4",) if feed is feed_rounded or on_card else ()
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.tap_layers, self._weights = tap_layers, weights
        self._embedding = FileTable(weights.matrices["embed.weight"])
        self._head: Callable[[torch.Tensor], torch.Tensor]
        self._decoder: Decoder | CardDecoder
        if store is not None and on_card:
            self._decoder = _card_decoder(config, weights, tap_layers, store, streams)
            self._head, self.device = self._decoder.head, self._decoder.device
        else:
            self._decoder = Decoder(config, weights, feed)
            self._head = partial(multiply_floats, weight=weights.matrices["head.weight"])
        self.caches = RequestCaches(config, self.device)
        self._sizes: list[int] = []  # of the blocks verified last
        self._far: torch.Tensor | None = None  # during the last pass
        expert = weights.blocks[0].experts[0]
        sizes = (each.num_bytes for each in (expert.gate, expert.up, expert.down))
        counts = (config.num_layers, config.num_experts, config.experts_per_token)
        self.expert_shape = ExpertShape(*counts, num_bytes=sum(sizes))
        self.spec = TargetSpec(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            context_limit=config.max_positions,
            stop_token_ids=stop_token_ids,
            rollback="crop",
            batches=True,
            max_rows=MAX_ROWS,
            chunk=MAX_ROWS if on_card and not streams else EXPERTS_PREFILL_CHUNK,
        )

    @property
    def pool(self) -> PagedPool:
        return self.caches.pool

    def embedding(self) -> FileTable:
        """As Target.embedding."""
        return self._embedding

    def output_head(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """As Target.output_head."""
        return self._head

    def open(self) -> KVSlot:
        return self.caches.open()

    def close(self, slot: KVSlot) -> None:
        self.caches.close(slot)

    def length(self, slot: KVSlot) -> int:
        return slot.length

    def prefill(self, slot: KVSlot, token_ids: torch.Tensor, total: int | None = None) -> Pass:
        """As Target.prefill."""
        hidden, taps = self._run(token_ids, [slot], [len(token_ids)])
        self._sizes = []
        slot.length += len(token_ids)
        return Pass(self._head(hidden[-1:]), taps)

    def verify(self, slots: Sequence[KVSlot], blocks: Sequence[torch.Tensor]) -> Pass:
        """As Target.verify; of a request at most MAX_ROWS rows, as the rings have room for."""
        sizes = [len(block) for block in blocks]
        if max(sizes) > MAX_ROWS:
            raise ValueError(f"a block of {max(sizes)} rows, {MAX_ROWS} can be taken back")
        hidden, taps = self._run(torch.cat(list(blocks)), slots, sizes)
        self._sizes = sizes
        return Pass(self._head(hidden), taps)

    def commit(self, slots: Sequence[KVSlot], num_kept: Sequence[int]) -> None:
        for slot, kept in zip(slots, num_kept, strict=True):
            slot.length += kept

    def expert_use(self) -> ExpertUse | None:
        """As RoutesExperts.expert_use."""
        if sum(self._sizes) != self._decoder.routes.shape[1] or not self._sizes:
            return None
        return expert_use(self._decoder.routes, self._sizes, self._far)

    def fork(self, slot: KVSlot, length: int) -> KVSlot | None:
        """As Target.fork: None where the window before `length` is overwritten already."""
        return self.caches.fork(slot, length)

    def held_bytes(self, slots: Collection[KVSlot]) -> int:
        """As Target.held_bytes."""
        return self.caches.held_bytes(slots)

    def truncate(self, slot: KVSlot, length: int, total: int | None = None) -> bool:
        """As Target.truncate."""
        if not self.caches.can_cut(slot, min(length, slot.length)):
            return False
        slot.length = min(slot.length, length)
        return True

    def _run(
        self, token_ids: torch.Tensor, slots: Sequence[KVSlot], sizes: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stretches, store = self.caches.stretches(slots, sizes), self.expert_store
        if store is not None:
            store.between_passes()
            self._far = store.far()
        found = self._decoder.run(token_ids, self.caches, stretches, self.tap_layers)
        if store is not None:
            store.note(self._decoder.routes)
        return found


def _card_decoder(
    config: DeepseekV4TargetConfig,
    weights: TargetWeights,
    tap_layers: Sequence[int],
    store: ExpertStore,
    streams: bool,
) -> "CardDecoder":
    from dspark.models.card_expert_store import CardExpertStore
    from dspark.models.deepseek_v4.card_decoder import CardDecoder

    assert isinstance(store, CardExpertStore)
    return CardDecoder(config, weights, tap_layers, store, streams=streams)


def _store(folder: ModelFolder, weights: TargetWeights) -> ExpertStore | None:
    """As store_for; the head's experts have slots of their own, see store_beside."""
    drafting = sum(bool(DRAFT_EXPERT.fullmatch(name)) for name in tensor_infos(folder))
    return store_for(folder, weights, drafting)


def _card_store(
    folder: ModelFolder, weights: TargetWeights, device: torch.device, *, drafts: bool
) -> tuple[ExpertStore, bool]:
    """As many experts as the card holds beside all else, that of a head with `drafts`, and whether
    prompts can stream there. Raises MemoryFullError."""
    from dspark.models.card_expert_store import CardExpertStore, card_plan

    layers = [block.experts for block in weights.blocks]
    count, size = len(layers[0]), expert_bytes(layers[0][0])
    kept = [weights.matrices["head.weight"]]
    kept += [weight for block in weights.blocks for weight in block.matrices.values()]
    always = sum(each.num_bytes for each in kept)
    if drafts:
        always += sum(entry.num_bytes for _, entry in folder.entries(HEAD_PREFIX))
    plan = card_plan(free_memory(str(device)), always, len(layers), count, size)
    if plan is None:
        raise MemoryFullError(
            "the GPU's memory does not hold what DeepSeek-V4 always reads",
            "Use --device cpu, or a GPU with more memory.",
        )
    return CardExpertStore(layers, plan.slots, device, path=uses_of(folder)), plan.streams


def load_deepseek_v4(
    folder: Folder,
    *,
    tap_layers: tuple[int, ...],
    rounds: bool = False,
    device: torch.device | None = None,
) -> DeepseekV4Target:
    """Of a folder in the published layout, on a CPU or, given as `device`, a card. `rounds`: rows
    meet routed experts in 8 bits, as they always do on a card. Raises CheckpointError,
    MemoryFullError."""
    folder = ModelFolder.of(folder)
    config = DeepseekV4TargetConfig.from_json(folder.config)
    weights = read_target(folder, config)
    stops = stop_tokens(folder, config)
    store: ExpertStore | None
    if device is not None and device.type != "cpu":
        store, streams = _card_store(folder, weights, device, drafts=bool(tap_layers))
    else:
        store, streams = _store(folder, weights), False
    try:
        feed = feed_rounded if rounds else feed_experts
        return DeepseekV4Target(
            config,
            weights,
            tap_layers=tap_layers,
            stop_token_ids=stops,
            feed=feed,
            store=store,
            streams=streams,
        )
    except (KeyError, TypeError, ValueError) as error:  # of rope_scaling, or sizes of blocks
        raise CheckpointError(
            f"the config in {folder.path} is invalid: {one_line(error)}"
        ) from error
