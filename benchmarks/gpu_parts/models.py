"""The project's own target and drafter in a model's shape, with random weights and full caches."""

from collections.abc import Iterator, Mapping, MutableMapping
from types import SimpleNamespace
from typing import Any

import torch

from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.config import DraftWeights, KVFormat
from dspark.drafters.head_drafter import EMBEDDING, OUTPUT_HEAD
from dspark.drafters.paged import PagedDSparkDrafter
from dspark.kvcache.caches import CachePass, PagedCache, PooledCache
from dspark.kvcache.page_pool import page_rows
from dspark.kvcache.row_pool import KVSlot, RowPlan
from dspark.targets.dense import DenseTarget
from dspark.targets.dense_shape import expected_tensors, read_shape
from dspark_kernels import RotaryTable
from dspark_kernels.paged_cache import num_pages_for
from gpu_parts.setting import Setting, Weight, random_weight
from gpu_parts.shapes import BLOCK_SIZE, EPS, MARKOV_RANK, ModelShape

AnyCache = PagedCache | PooledCache
ROPE_THETA = 1e6  # Qwen3's
CONTEXT_LIMIT = 40_960
TABLES = ("model.embed_tokens.weight", "markov_head.markov_w1.weight")  # rows that are looked up


class RandomTensors(MutableMapping[str, Any]):
    """Drawn when they are asked for, so that none is held twice; in bf16, the layers' matrices in
    the format `kind`."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], setting: Setting, kind: str = "bf16"
    ) -> None:
        self._shapes, self._setting, self._kind = dict(shapes), setting, kind

    def __getitem__(self, name: str) -> Weight:
        shape, device = self._shapes[name], self._setting.device
        if len(shape) == 1:
            return (1 + 0.1 * torch.randn(shape, device=device)).to(torch.bfloat16)
        if name in TABLES:
            return torch.randn(shape, device=device, dtype=torch.bfloat16)
        kind = self._kind if ".layers." in name else "bf16"
        return random_weight(kind, (shape[0], shape[1]), device)

    def __setitem__(self, name: str, tensor: Any) -> None:
        raise TypeError("weights are only drawn")

    def __delitem__(self, name: str) -> None:
        del self._shapes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def random_target(
    shape: ModelShape, setting: Setting, kind: str = "bf16", kv: KVFormat = "auto"
) -> DenseTarget:
    shapes, _ = expected_tensors(_config_of(shape))
    weights = {name: size for name, size in shapes.items() if not name.endswith(".bias")}
    return target_of(RandomTensors(weights, setting, kind), shape, setting, kv)


def target_of(
    tensors: MutableMapping[str, Any],
    shape: ModelShape,
    setting: Setting,
    kv: KVFormat = "auto",
) -> DenseTarget:
    """`tensors` under transformers' names; consumed. Qwen3's embedding and output head differ."""
    exponent = torch.arange(0, shape.head_dim, 2, device=setting.device) / shape.head_dim
    return DenseTarget(
        read_shape(_config_of(shape)),
        tensors,
        RotaryTable(ROPE_THETA**-exponent, 1.0, torch.bfloat16),
        is_tied=False,
        context_limit=CONTEXT_LIMIT,
        tap_layers=shape.tap_layers,
        kv=kv,
    )


def random_drafter(
    shape: ModelShape,
    target: DenseTarget,
    setting: Setting,
    weights: DraftWeights = "auto",
    kv: KVFormat = "auto",
) -> PagedDSparkDrafter:
    """Embedding and output head are the target's; `weights` as `--draft-weights`, `kv` as
    `--kv` has them."""
    config = DSparkConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_layers=shape.num_draft_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=EPS,
        rope_theta=ROPE_THETA,
        block_size=BLOCK_SIZE,
        mask_token_id=0,
        target_layer_ids=shape.tap_layers,
        num_target_layers=shape.num_layers,
        markov_type="vanilla",
        markov_rank=MARKOV_RANK if shape.vocab_size > 1000 else 16,
        has_confidence=True,
        confidence_with_markov=True,
    )
    own = {n: s for n, s in config.expected_tensors().items() if n not in (EMBEDDING, OUTPUT_HEAD)}
    tables = (target.embedding(), target.output_head())
    return PagedDSparkDrafter(config, RandomTensors(own, setting), *tables, weights=weights, kv=kv)


def open_full(cache: AnyCache, length: int, num_slots: int = 1) -> list[KVSlot]:
    """Requests with room for `length` positions each, all of them random numbers."""
    if isinstance(cache, PooledCache):  # where Triton is missing, and nothing is timed
        return [cache.open() for _ in range(num_slots)]
    pages = num_pages_for(length)
    cache.fix(1 + pages * num_slots, 1 + num_slots, length)
    slots = [cache.open() for _ in range(num_slots)]
    for slot in slots:
        cache.pool.reserve(slot.index, length)
    for layer in range(cache.shape.num_layers):
        for cached in cache.pool.layer(layer):
            cached.normal_()
    return slots


def pass_at(
    cache: AnyCache, slots: list[KVSlot], starts: list[int], sizes: list[int], *, causal: bool
) -> CachePass:
    """A pass over the rows from `starts` on, its numbers on the device."""
    for slot, start in zip(slots, starts, strict=True):
        slot.length = start
    if isinstance(cache, PooledCache):
        return cache.at(slots, sizes, causal=causal)
    return cache.over(page_rows(RowPlan(slots, sizes, causal=causal), cache.device))


def _config_of(shape: ModelShape) -> Any:
    return SimpleNamespace(
        model_type="qwen3",
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=EPS,
        tie_word_embeddings=False,
    )
