"""Random DeepSeek-V4 of four layers at its real shapes: a sliding one whose tokens choose experts,
one of each kind of compression, and another of the first. Nothing is zero, nothing is trained."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from dspark.checkpoints.deepseek_v4_target import Block, Expert, TargetWeights, dense_shapes
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.card_expert_store import CardExpertStore
from dspark.models.deepseek_v4.cache import RequestCaches, Stretch
from dspark_kernels.cpu.file_weight import FileWeight, file_weight
from dspark_kernels.repacked_weight import FP4_GROUP
from gpu_parts.setting import Setting

PLAIN = ("ffn.gate.weight", "compressor.wkv.weight", "compressor.wgate.weight")
PLAIN += ("indexer.weights_proj.weight", "head.weight")
SLOTS = 64  # a layer
Item = TypeVar("Item")
YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 65536}


def sizes(setting: Setting) -> DeepseekV4TargetConfig:
    """Of V4-Flash, or small enough for Triton's interpreter."""
    tiny = setting.is_tiny
    ratios = (0, 4, 8 if tiny else 128, 4)
    block = 32 if tiny else 128
    return DeepseekV4TargetConfig(
        vocab_size=96 if tiny else 129280,
        hidden_size=64 if tiny else 4096,
        num_layers=len(ratios),
        num_heads=4 if tiny else 64,
        head_dim=160 if tiny else 512,
        rope_dim=32 if tiny else 64,
        query_rank=64 if tiny else 1024,
        output_rank=32 if tiny else 1024,
        output_groups=2 if tiny else 8,
        expert_size=32 if tiny else 2048,
        num_experts=6 if tiny else 256,
        experts_per_token=2 if tiny else 6,
        num_hash_layers=1,
        num_streams=4,
        sinkhorn_steps=2 if tiny else 20,
        window=8 if tiny else 128,
        index_heads=4 if tiny else 64,
        index_dim=32 if tiny else 128,
        index_top=3 if tiny else 512,
        max_positions=4096 if tiny else 1 << 20,
        ratios=ratios,
        selects=tuple(ratio == 4 for ratio in ratios),
        scale_block=(block, block),
        routed_scale=1.5,
        swiglu_limit=10.0,
        rms_norm_eps=1e-6,
        stream_eps=1e-6,
        window_rope={"rope_theta": 1e4},
        compressed_rope={"rope_theta": 160000.0, "attention_factor": 1.0, **YARN},
    )


def random_target(config: DeepseekV4TargetConfig, device: torch.device) -> TargetWeights:
    """What is always read on the device, routed experts in the host's memory."""
    matrices: dict[str, FileWeight] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in dense_shapes(config).items():
        if name == "embed.weight":
            matrices[name] = file_weight(torch.randn(shape).bfloat16())  # stays on the host
        elif len(shape) != 2 or name.endswith(".ape"):
            drawn = torch.randn(shape) * 0.1
            tensors[name] = drawn + 1.0 if "norm" in name else drawn
        elif name.endswith(PLAIN):
            drawn = torch.randn(shape, device=device) * shape[1] ** -0.5
            matrices[name] = file_weight(drawn.bfloat16())
        elif name.endswith("_fn"):
            matrices[name] = file_weight(torch.randn(shape, device=device) * shape[1] ** -0.5)
        else:
            matrices[name] = random_fp8(shape, config.scale_block, device)
    table = torch.rand(config.vocab_size, config.num_experts).argsort(1)
    tensors["layers.0.ffn.gate.tid2eid"] = table[:, : config.experts_per_token].contiguous()
    blocks = []
    for layer in range(config.num_layers):
        prefix = f"layers.{layer}."
        experts = random_experts(config, device)
        blocks.append(Block(below(matrices, prefix), below(tensors, prefix), experts))
    return TargetWeights(matrices, tensors, tuple(blocks))


def below(named: Mapping[str, Item], prefix: str) -> dict[str, Item]:
    return {n.removeprefix(prefix): each for n, each in named.items() if n.startswith(prefix)}


def random_fp8(shape: Sequence[int], block: tuple[int, int], device: torch.device) -> FileWeight:
    codes = torch.randn(tuple(shape), device=device).to(torch.float8_e4m3fn)
    size = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    return file_weight(codes, exponents(size, shape[1], device), *block)


def random_experts(config: DeepseekV4TargetConfig, device: torch.device) -> tuple[Expert, ...]:
    """Made on the device, kept in the host's memory, pinned where there is a card."""
    hidden, inner = config.hidden_size, config.expert_size

    def weights(rows: int, columns: int) -> list[FileWeight]:
        size = (config.num_experts, rows, columns // 2)
        codes = torch.randint(0, 256, size, dtype=torch.uint8, device=device)
        scales = exponents((*size[:2], columns // FP4_GROUP), columns, device)
        both = [each.cpu() for each in (codes, scales)]
        if device.type == "cuda":
            both = [each.pin_memory() for each in both]
        return [
            FileWeight("fp4", code, scale, 1, FP4_GROUP) for code, scale in zip(*both, strict=True)
        ]

    parts = (weights(inner, hidden), weights(inner, hidden), weights(hidden, inner))
    return tuple(Expert(*each) for each in zip(*parts, strict=True))


def exponents(size: Sequence[int], columns: int, device: torch.device) -> torch.Tensor:
    """By which products keep the size of their rows, or half or twice that."""
    middle = 127 - round(math.log2(columns) / 2) - 1
    return torch.randint(middle - 1, middle + 2, tuple(size), dtype=torch.uint8, device=device)


def filled_store(
    weights: TargetWeights, slots: int, device: torch.device, generator: torch.Generator
) -> CardExpertStore:
    """So many random experts of every layer in slots."""
    layers = [block.experts for block in weights.blocks]
    count = len(layers[0])
    store = CardExpertStore(layers, slots * len(layers), device)
    place = 0
    for layer in range(len(layers)):
        for number in torch.randperm(count, generator=generator)[:slots].tolist():
            put(store, layer * count + number, place)
            place += 1
    return store


def put(store: CardExpertStore, key: int, slot: int) -> None:
    store._copy(store._source[key], store._slots[slot])
    store._free.remove(slot)
    store._slot_of[key] = slot
    store._put(key, slot)


def open_at(caches: RequestCaches, length: int, rows: int) -> list[Stretch]:
    """A request of so many random positions, and its next rows."""
    slot = caches.open()
    caches.stretches([slot], [length])
    slot.length = length
    rings = caches.rings(slot)
    rings.memory.normal_()
    rings.written = length
    for half in caches.halves():
        half.normal_()
    return caches.stretches([slot], [rows])
