"""gpt-oss and Qwen3-MoE as they are published, on a CPU: our own forward over weights mapped from
their files.

What is always read meets rows in float32, as it is stored. Routed experts stay in their codes; rows
meet MXFP4 in float32 or, faster and rounded as int8_rows states, in 8 bits.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from dspark.checkpoints.deepseek_v4_target import TargetWeights
from dspark.checkpoints.files import one_line
from dspark.checkpoints.model_folder import Folder, ModelFolder
from dspark.checkpoints.moe_config import MoeConfig
from dspark.checkpoints.moe_target import EMBEDDING, HEAD, read_moe
from dspark.config import EXPERTS_PREFILL_CHUNK
from dspark.errors import CheckpointError
from dspark.kvcache.page_pool import PagedPool
from dspark.kvcache.row_pool import KVSlot
from dspark.models.expert_store import ExpertStore, store_for, with_store
from dspark.models.moe import reference
from dspark.models.moe.layer_program import is_supported
from dspark.models.moe.native_pass import NativePass
from dspark.targets.base import Pass, TargetSpec
from dspark.targets.context import context_limit
from dspark.targets.expert_use import ExpertShape, ExpertUse, expert_use
from dspark.targets.pool_slots import PoolSlots
from dspark.targets.stop_tokens import stop_tokens
from dspark_kernels.cpu.file_weight import FileTable
from dspark_kernels.cpu.float_matrix import multiply_floats
from dspark_kernels.cpu.runtime import Runtime, current
from dspark_kernels.cpu.step_words import Place
from dspark_kernels.rope import RotaryTable
from dspark_kernels.rope_frequencies import rope_frequencies

MAX_ROWS = 64  # of a pass that verifies


class MoeTarget(PoolSlots):
    """A target whose requests share one pool; rollback is leaving rows uncommitted. `kinds`: the
    formats that rows are rounded for, none if they meet all weights in float32."""

    def __init__(
        self,
        config: MoeConfig,
        weights: TargetWeights,
        *,
        tap_layers: tuple[int, ...] = (),
        stop_token_ids: frozenset[int] = frozenset(),
        rounds: bool = False,
        store: ExpertStore | None = None,
    ) -> None:
        """`rounds`: rows meet experts in FP4 in 8 bits; those in other formats never do. `store`:
        of the weights' routed experts, where memory does not hold all."""
        self.expert_store = store
        expert = weights.blocks[0].experts[0]
        self._rounds = rounds and expert.gate.kind == "fp4"
        self.kinds = ("fp4",) if self._rounds else ()
        self._config = config
        self._weights = weights if store is None else with_store(weights, store)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.tap_layers = tap_layers
        self._embedding = FileTable(weights.matrices[EMBEDDING])
        self._head = partial(multiply_floats, weight=weights.matrices[HEAD])
        self._made: tuple[Runtime, NativePass] | None = None
        self._rotary = RotaryTable(
            *rope_frequencies(config.rope_parameters, config.head_dim), torch.float32
        )
        sizes = (config.num_layers, config.num_kv_heads, config.head_dim)
        self.pool = PagedPool(*sizes, self.device, self.dtype, num_pages=1)
        self._sizes: list[int] = []  # of the blocks verified last
        self._routes, self._far = torch.empty(0), None if store is None else store.far()
        of_one = sum(each.num_bytes for each in (expert.gate, expert.up, expert.down))
        counts = (config.num_layers, config.num_experts, config.experts_per_token)
        self.expert_shape = ExpertShape(*counts, num_bytes=of_one)
        self.spec = TargetSpec(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            context_limit=context_limit(config),
            stop_token_ids=stop_token_ids,
            rollback="crop",
            batches=True,
            chunk=EXPERTS_PREFILL_CHUNK,
        )

    @property
    def slots(self) -> PagedPool:
        return self.pool

    def embedding(self) -> FileTable:
        """As Target.embedding."""
        return self._embedding

    def output_head(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """As Target.output_head."""
        return self._head

    def prefill(self, slot: KVSlot, token_ids: torch.Tensor, total: int | None = None) -> Pass:
        """As Target.prefill."""
        hidden, taps = self._run(token_ids, [slot], [len(token_ids)])
        self._sizes = []
        slot.length += len(token_ids)
        return Pass(self._head(hidden[-1:]), taps)

    def verify(self, slots: Sequence[KVSlot], blocks: Sequence[torch.Tensor]) -> Pass:
        """As Target.verify."""
        sizes = [len(block) for block in blocks]
        hidden, taps = self._run(torch.cat(list(blocks)), slots, sizes)
        self._sizes = sizes
        return Pass(self._head(hidden), taps)

    def expert_use(self) -> ExpertUse | None:
        """As RoutesExperts.expert_use."""
        return expert_use(self._routes, self._sizes, self._far) if self._sizes else None

    def _run(
        self, token_ids: torch.Tensor, slots: Sequence[KVSlot], sizes: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, store = self.pool.rows_on_cpu(slots, sizes, causal=True), self.expert_store
        place = Place(*(torch.tensor(each) for each in (rows.positions, rows.slots, rows.visible)))
        around = (self.pool.on_cpu(), place, self._rotary.upto(max(rows.positions)))
        if store is not None:
            store.between_passes()
            self._far = store.far()
        embedded = self._embedding[token_ids]
        if (native := self._native()) is not None:
            hidden, taps, self._routes = native.run(embedded, *around)
        else:
            model = (self._config, self._weights, self.tap_layers)
            found = reference.run(*model, embedded, *around, rounds=self._rounds)
            hidden, taps, self._routes = found
        if store is not None:
            store.note(self._routes)
        return hidden, taps

    def _native(self) -> NativePass | None:
        """None where torch does it all."""
        runtime = current()
        if runtime is None:
            return None
        if self._made is None or self._made[0] is not runtime:
            model = (self._config, self._weights, self.tap_layers, runtime)
            self._made = runtime, NativePass(*model, rounds=self._rounds)
        return self._made[1]


def runs_here(folder: ModelFolder) -> bool:
    """Whether the kernels have this model's sizes; they are in whole groups of 32 numbers."""
    return is_supported(MoeConfig.from_json(folder.config))


def load_moe(folder: Folder, *, tap_layers: tuple[int, ...], rounds: bool = False) -> MoeTarget:
    """Of a folder for which is_moe_layout and is_supported hold. `rounds`: rows meet experts in
    FP4 in 8 bits. Raises CheckpointError."""
    folder = ModelFolder.of(folder)
    config = MoeConfig.from_json(folder.config)
    weights = read_moe(folder, config)
    try:
        return MoeTarget(
            config,
            weights,
            tap_layers=tap_layers,
            stop_token_ids=stop_tokens(folder, config),
            rounds=rounds,
            store=store_for(folder, weights),
        )
    except (KeyError, TypeError, ValueError) as error:  # of rope_scaling, or sizes of blocks
        raise CheckpointError(
            f"the config in {folder.path} is invalid: {one_line(error)}"
        ) from error
