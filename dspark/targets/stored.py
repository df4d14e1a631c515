"""The dense forward on the CPU's kernels: weights in the codes of a GGUF, a pass is one call.

Rows are rounded to 16 bits in groups of 32 before they meet a weight. Codes add as whole numbers,
so a row is bit-identical whatever else is in the batch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dspark.checkpoints.model_folder import Folder, ModelFolder
from dspark.checkpoints.safetensors_dir import StoredTensors, check_tensors, tensor_infos
from dspark.errors import CheckpointError, InputError
from dspark.events import LoadProgress
from dspark.kvcache.page_pool import PagedPool
from dspark.kvcache.row_pool import KVSlot
from dspark.targets.base import Behind, Pass, TargetSpec
from dspark.targets.context import context_limit
from dspark.targets.dense_config import read_dense_config
from dspark.targets.dense_files import read_config, rotary_table, supports
from dspark.targets.dense_shape import DenseShape, expected_tensors, read_shape
from dspark.targets.pool_slots import PoolSlots
from dspark.targets.stop_tokens import stop_tokens
from dspark_kernels.cpu.decoder_pass import (
    MAX_ROWS,
    Decoder,
    DecoderLayer,
    DecoderPass,
    Projection,
)
from dspark_kernels.cpu.output_head import StoredOutputHead
from dspark_kernels.cpu.rope_write import Heads
from dspark_kernels.cpu.runtime import Op, Runtime, current
from dspark_kernels.cpu.step_words import MAX_HEAD_DIM, PassRows
from dspark_kernels.cpu.stored_weight import StoredWeight, concatenated
from dspark_kernels.cpu.weight_table import WeightTable
from dspark_kernels.host_memory import give_back_freed
from dspark_kernels.one_thread import one_thread

EMBEDDING, HEAD, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


class StoredTarget(PoolSlots):
    """A target whose requests share one pool; rollback is leaving rows uncommitted."""

    def __init__(
        self,
        config: Any,
        tensors: StoredTensors,
        runtime: Runtime,
        *,
        tap_layers: tuple[int, ...] = (),
        stop_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.device, self.dtype = torch.device("cpu"), torch.float32
        shape = read_shape(config)
        weights = _Weights(tensors, shape)
        decoder = weights.decoder(tap_layers)
        self.kinds = weights.kinds()
        is_tied = HEAD not in tensors
        self._embedding = WeightTable(decoder.embedding)
        head = decoder.embedding if is_tied else weights.matrix(HEAD)
        self._head = StoredOutputHead(runtime, head)
        self._runtime = runtime
        self._pass = DecoderPass(runtime, decoder, head, head.num_columns, finds_largest=True)
        self._logits = torch.empty(1, head.num_columns)
        self._views: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self.rotary = rotary_table(config, self.device, self.dtype)
        sizes = (shape.num_layers, shape.num_kv_heads, shape.head_dim)
        self.pool = PagedPool(*sizes, self.device, self.dtype, num_pages=1)
        self.spec = TargetSpec(
            vocab_size=decoder.embedding.num_outputs,
            hidden_size=decoder.embedding.width,
            num_layers=shape.num_layers,
            context_limit=context_limit(config),
            stop_token_ids=stop_token_ids,
            rollback="crop",
            batches=True,
        )

    def embedding(self) -> WeightTable:
        return self._embedding

    def output_head(self) -> StoredOutputHead:
        return self._head

    @property
    def slots(self) -> PagedPool:
        return self.pool

    def prefill(self, slot: KVSlot, token_ids: torch.Tensor, total: int | None = None) -> Pass:
        rows = self.pool.rows_on_cpu([slot], [len(token_ids)], token_ids.tolist(), causal=True)
        taps = torch.empty(len(token_ids), self._pass.taps.shape[1])
        for at in range(0, len(taps), MAX_ROWS):  # keys are written before they are read
            part = slice(at, at + MAX_ROWS)
            self._run(rows.part(part))
            taps[part] = self._pass.taps[: len(taps[part])]
        slot.length += len(token_ids)
        last = (len(taps) - 1) % MAX_ROWS
        return Pass(self._head(self._pass.hidden[last : last + 1]), taps)

    def verify(self, slots: Sequence[KVSlot], blocks: Sequence[torch.Tensor]) -> Pass:
        found = self.verify_ids(slots, [block.tolist() for block in blocks])
        return Pass(found.logits.clone(), found.taps.clone(), found.largest)

    def verify_ids(
        self,
        slots: Sequence[KVSlot],
        blocks: Sequence[Sequence[int]],
        behind: Behind | None = None,
    ) -> Pass:
        """As KernelTarget.verify_ids."""
        tokens = [token for block in blocks for token in block]
        rows = self.pool.rows_on_cpu(slots, [len(block) for block in blocks], tokens, causal=True)
        if len(tokens) > MAX_ROWS:
            return self._in_parts(rows)
        logits, out, taps = self._memory_of(len(tokens))
        self._run(rows, logits, behind)
        return Pass(out, taps, self._pass.largest(len(tokens)))

    def _in_parts(self, rows: PassRows) -> Pass:
        count = len(rows.tokens)
        logits, out, _ = self._memory_of(count)
        taps, best, sound = torch.empty(count, self._pass.taps.shape[1]), [], []
        for at in range(0, count, MAX_ROWS):  # keys are written before they are read
            part = slice(at, min(at + MAX_ROWS, count))
            self._run(rows.part(part), logits[part])
            size = part.stop - at
            taps[part] = self._pass.taps[:size]
            own_best, own_sound = self._pass.largest(size)
            best += own_best
            sound += own_sound
        return Pass(out, taps, (best, sound))

    def ops(self) -> list[Op]:
        """Of a pass, for measuring them one by one."""
        return self._pass.ops

    def _run(
        self, rows: PassRows, logits: torch.Tensor | None = None, behind: Behind | None = None
    ) -> None:
        """At most 64 rows; fills logits [N, columns]."""
        rotary = self.rotary.upto(max(rows.positions))
        job = self._pass.job(rows, self.pool.on_cpu(), rotary, logits)
        if behind is None:
            self._runtime.run_jobs(job)
        else:
            self._runtime.run_jobs(job, behind(self._pass.taps))

    def _memory_of(self, num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [N, columns], of them [N, V], and taps, where they stay until the next pass: every
        page of fresh memory would first be cleared."""
        if len(self._logits) < num_rows:
            self._logits = torch.empty(2 * num_rows, self._logits.shape[1])
            self._views.clear()
        if num_rows not in self._views:
            logits = self._logits[:num_rows]
            taps = self._pass.taps[:num_rows]
            self._views[num_rows] = (logits, logits[:, : self.spec.vocab_size], taps)
        return self._views[num_rows]


class _Weights:
    """Of a folder, read when they are asked for."""

    def __init__(self, tensors: StoredTensors, shape: DenseShape) -> None:
        self._tensors, self._shape = tensors, shape
        self._numbers: dict[str, int] = {}

    def kinds(self) -> tuple[str, ...]:
        """Formats of the weights read, the most common first."""
        return tuple(sorted(self._numbers, key=lambda kind: -self._numbers[kind]))

    def matrix(self, name: str) -> StoredWeight:
        weight = self._tensors.in_codes(name)
        if weight is None:
            raise CheckpointError(f"the target's {name} is not stored in codes")
        count = self._numbers.get(weight.kind, 0) + weight.num_outputs * weight.width
        self._numbers[weight.kind] = count
        return weight

    def decoder(self, tap_layers: tuple[int, ...]) -> Decoder:
        embedding = self.matrix(EMBEDDING)
        layers = [self._layer(f"model.layers.{i}.") for i in range(self._shape.num_layers)]
        return Decoder(embedding, layers, self._tensors[FINAL_NORM], self._shape.eps, tap_layers)

    def _layer(self, layer: str) -> DecoderLayer:
        built = DecoderLayer(
            input_norm=self._tensors[layer + "input_layernorm.weight"],
            qkv=self._projection(layer + "self_attn.", "q_proj", "k_proj", "v_proj"),
            heads=self._heads(layer + "self_attn."),
            output=self._projection(layer + "self_attn.", "o_proj"),
            mlp_norm=self._tensors[layer + "post_attention_layernorm.weight"],
            gate_up=self._projection(layer + "mlp.", "gate_proj", "up_proj"),
            down=self._projection(layer + "mlp.", "down_proj"),
        )
        give_back_freed()
        return built

    def _heads(self, prefix: str) -> Heads:
        shape, norms = self._shape, [f"{prefix}{which}_norm.weight" for which in "qk"]
        return Heads(
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            shape.head_dim**-0.5,
            (self._tensors[norms[0]], self._tensors[norms[1]], shape.eps)
            if norms[0] in self._tensors
            else None,
        )

    def _projection(self, prefix: str, *names: str) -> Projection:
        """Neighbours of one format become one."""
        weights: list[StoredWeight] = []
        for name in names:
            weight = self.matrix(f"{prefix}{name}.weight")
            whole = concatenated([weights[-1], weight]) if weights else None
            weights = [*weights, weight] if whole is None else [*weights[:-1], whole]
        biases = [f"{prefix}{name}.bias" for name in names]
        has_bias = biases[0] in self._tensors
        bias = torch.cat([self._tensors[name] for name in biases]) if has_bias else None
        return Projection(tuple(weights), bias)


def stored_runtime(folder: Folder, config: Any) -> Runtime | None:
    """The runtime for this folder's codes; None if it has plain numbers, or they cannot run
    here."""
    if not supports(config):
        return None
    head_dim = read_shape(config).head_dim
    if head_dim % 32 or head_dim > MAX_HEAD_DIM:
        return None
    tensors = StoredTensors(folder)
    linear = [name for name in tensors if name.endswith(("_proj.weight", EMBEDDING, HEAD))]
    if not linear or not all(tensors.kind(name) for name in linear):
        return None
    try:
        return current()
    except ValueError as error:  # of DSPARK_CPU
        raise InputError(str(error), "Leave the variable out, or name one that can.") from error


def build_kernels(folder: Folder, also: Sequence[str] = ()) -> Iterator[LoadProgress]:
    """Compiles what this folder's codes need and is not compiled yet, telling how far it is; if
    anything, `also` these functions, of a head."""
    folder = ModelFolder.of(folder)
    config = read_dense_config(folder) or read_config(folder)
    runtime = stored_runtime(folder, config)
    if runtime is None:
        return
    missing = runtime.missing([*_functions(folder, config), *also])
    for index, function in enumerate(missing):
        yield LoadProgress("building kernels, once", index, len(missing))
        runtime.address(function)


def _functions(folder: ModelFolder, config: Any) -> list[str]:
    """One of each library."""
    tensors, shape = StoredTensors(folder), read_shape(config)
    kinds = {kind for name in tensors if (kind := tensors.kind(name))}
    attend = f"attend_{shape.head_dim}_{shape.num_heads // shape.num_kv_heads}"
    matrices = [f"matrix_{kind}" for kind in sorted(kinds)]
    return ["rope_write", attend, f"embed_{tensors.kind(EMBEDDING)}", *matrices]


@one_thread()
def load_stored(
    directory: Folder,
    config: Any,
    runtime: Runtime,
    *,
    tap_layers: tuple[int, ...],
) -> StoredTarget:
    """Read a folder for which there is a `stored_runtime`. Raises CheckpointError naming a missing
    or surplus tensor."""
    folder = ModelFolder.of(directory)
    check_tensors(tensor_infos(folder), *expected_tensors(config), str(folder.path))
    try:
        return StoredTarget(
            config,
            StoredTensors(folder, dtype=torch.float32),
            runtime,
            tap_layers=tap_layers,
            stop_token_ids=stop_tokens(folder, config),
        )
    except KeyError as error:
        raise CheckpointError(f"the target lacks the tensor {error.args[0]}") from error
