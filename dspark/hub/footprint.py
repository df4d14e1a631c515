"""The size of a pair in numbers: from its files, a listing of them, or the registry."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dspark.checkpoints.deepseek_v4_cache_layout import (
    request_values,
    row_values,
    token_values,
)
from dspark.checkpoints.deepseek_v4_config import MODEL_TYPE
from dspark.checkpoints.deepseek_v4_target_config import (
    DeepseekV4TargetConfig,
    is_published_layout,
)
from dspark.checkpoints.detect import SUBFOLDER, Packaging
from dspark.checkpoints.model_folder import (
    DRAFT_VOCABULARY,
    Folder,
    ModelFolder,
    coded_sizes,
    gpu_coded_sizes,
    read_shapes,
)
from dspark.checkpoints.moe_config import GPT_OSS, MoeConfig, is_moe_layout
from dspark.checkpoints.moe_config import row_values as moe_row_values
from dspark.checkpoints.target_architectures import DENSE
from dspark.errors import CheckpointError
from dspark.hub.catalog.pairs import AssetFolder, HubRepo, Pair, TargetFacts
from dspark.hub.expert_sizes import FP4_BYTE, ExpertSizes, expert_bytes, expert_sizes

FLOAT = 4  # bytes
OWN_TABLES = ("embed_tokens.weight", "lm_head.weight")  # of a head: mostly the target's again
PACKED_BYTE = 17 / 32  # bytes of a 4-bit number with its scales
COPIED = re.compile(r"(layers\.\d+\..+_proj|fc)\.weight$")  # of a head of DSpark's layout
HEAD_STAGES = 3  # of DeepSeek-V4's own heads, all that were released
HEAD_REST = 1.06  # times the experts of DeepSeek-V4's own head: all of it
FP4_HEAD = 0.55  # bytes of a number of DeepSeek-V4's own head: experts in 4 bits, the rest not
UNPACKED_GROWTH = 3.4  # from FP4 experts and FP8 layers to bfloat16, of DeepSeek-V4-Flash
HEAD_LAYERS = 5  # of the released heads
TOWERS = re.compile(r"vision|visual|audio|multi_modal|mm_projector")  # which are never loaded


@dataclass(frozen=True, slots=True)
class Footprint:
    """A pair's size in numbers, not bytes.

    `cache`: of one token, target and head; `rings`: of a request of any length;
    `row`: of one row of a pass, where that is told by the target's own layout.
    `stored_bytes`: of FP8 weights if they stay quantized.
    `coded_values`: those that are stored in the codes of a GGUF, which are `coded_bytes`; those
    that stay codes on a GPU have sizes of their own.
    `copied_values`: those of a head that are int8 copies beside it. `runs_mapped`: layouts whose
    `stored_bytes` a CPU multiplies with where the files have them (DeepSeek-V4's own, gpt-oss,
    Qwen3-MoE); `unpacks_elsewhere`: other devices always hold them as bfloat16. `experts` are
    those of the target among them, `head_bytes` those of its own head.
    """

    values: int
    vocab_size: int = 0
    hidden_size: int = 0
    inner_size: int = 0
    cache: int = 0
    is_dense: bool = False
    rings: int = 0
    row: int = 0
    stored_bytes: int | None = None
    coded_values: int = 0
    coded_bytes: int = 0
    gpu_coded_values: int = 0
    gpu_coded_bytes: int = 0
    copied_values: int = 0
    runs_mapped: bool = False
    unpacks_elsewhere: bool = False
    experts: ExpertSizes | None = None
    head_bytes: int = 0

    def plus_head(self, values: int, cache: int, copied_values: int = 0) -> "Footprint":
        return replace(
            self,
            values=self.values + values,
            cache=self.cache + cache,
            copied_values=self.copied_values + copied_values,
        )


def of_folders(target: Folder, draft: Folder | None) -> Footprint:
    """Exact, from the headers and the configs."""
    target = ModelFolder.of(target)
    config = target.config
    skipped = TOWERS.search if "text_config" in config else lambda name: None
    shapes = read_shapes(target).items()
    footprint = _of_target(
        config, sum(math.prod(each) for name, each in shapes if not skipped(name))
    )
    coded_values, coded_bytes = coded_sizes(target)
    footprint = replace(footprint, coded_values=coded_values, coded_bytes=coded_bytes)
    gpu_coded_values, gpu_coded_bytes = gpu_coded_sizes(target)
    footprint = replace(
        footprint, gpu_coded_values=gpu_coded_values, gpu_coded_bytes=gpu_coded_bytes
    )
    if is_published_layout(config) or is_moe_layout(config):
        num_bytes = sum(entry.num_bytes for _, entry in target.entries())
        footprint = of_listing(config, num_bytes, is_whole_v4=is_published_layout(config))
    if draft is None or ModelFolder.of(draft).path == target.path:  # a head in its own shards, too
        return footprint
    return footprint.plus_head(*_head_values(ModelFolder.of(draft), footprint))


def _head_values(draft: ModelFolder, target: Footprint) -> tuple[int, int, int]:
    """Numbers of a head's weights, of its cache per token, and of weights that become int8 copies
    beside codes."""
    folder = draft if draft.has("config.json") else ModelFolder(draft.path / SUBFOLDER)
    config, shapes = folder.config, read_shapes(folder)
    table = (target.vocab_size, target.hidden_size)
    values = sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if not (name.removeprefix("model.") in OWN_TABLES and shape == table)
    )
    if folder.has(DRAFT_VOCABULARY):  # the rows of the draft vocabulary, once more, prepacked
        rank = int(config.get("markov_rank") or 0)
        extra = folder.file(folder.path / DRAFT_VOCABULARY)
        fixed = sum(math.prod(entry.shape) for entry in extra.entries.values())
        values += fixed * (target.hidden_size + rank)
    copied = sum(math.prod(shape) for name, shape in shapes.items() if COPIED.match(name))
    return values, cache_values(config), copied


def of_listing(config: dict[str, Any], num_bytes: int, *, is_whole_v4: bool) -> Footprint:
    """Size of a target before download, from its config and the bytes of its weights."""
    if not is_whole_v4:
        moe = _of_moe(config, num_bytes)
        return moe or _of_target(config, stored_values(config, num_bytes))
    footprint = _of_target(config, int(num_bytes * UNPACKED_GROWTH / 2))
    experts = expert_sizes(config)
    stages = len(config.get("compress_ratios") or ()) - int(config.get("num_hidden_layers") or 0)
    is_told = experts is not None and stages > 0
    in_head = stages * experts.per_layer * experts.num_bytes if is_told and experts else 0
    return replace(
        footprint,
        stored_bytes=num_bytes,
        runs_mapped=is_published_layout(config),
        experts=experts,
        head_bytes=int(in_head * HEAD_REST),
    )


def _of_moe(config: dict[str, Any], num_bytes: int) -> Footprint | None:
    """Of gpt-oss or Qwen3-MoE; None for another model, or a config that makes no sense."""
    experts = expert_sizes(config) if is_moe_layout(config) else None
    if experts is None:
        return None
    try:
        of_row = moe_row_values(MoeConfig.from_json(config))
    except CheckpointError:
        return None
    values = stored_values(config, num_bytes)
    is_mxfp4 = config["model_type"] == GPT_OSS
    if is_mxfp4:  # whose other weights are bfloat16
        values = int(experts.total_bytes / PACKED_BYTE) + (num_bytes - experts.total_bytes) // 2
    return replace(
        _of_target(config, values),
        row=of_row,
        stored_bytes=num_bytes,
        runs_mapped=True,
        unpacks_elsewhere=is_mxfp4,
        experts=experts,
    )


def stored_values(config: dict[str, Any], num_bytes: int) -> int:
    """Numbers stored in that many bytes."""
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict):
        method = quantization.get("quant_method")
        return int(num_bytes / (1.0 if method in ("fp8", "compressed-tensors") else PACKED_BYTE))
    text = config.get("text_config", config)
    dtype = config.get("dtype") or config.get("torch_dtype") or text.get("dtype")
    return num_bytes // (FLOAT if dtype == "float32" else 2)


def of_pair(pair: Pair) -> Footprint | None:
    """From the catalogue; None if the size is not established."""
    if pair.target_num_bytes is None:
        return None
    values = pair.num_parameters or pair.target_num_bytes // 2
    if brings_own_head(pair):
        head = pair.head.num_parameters if pair.head else None
        # as stored, the head is among the target's bytes; unpacked, it adds to the target's
        beside = 0 if head is None else int(head * FP4_HEAD / 2)
        facts = pair.facts or TargetFacts("", 0, 0, 0)
        experts = _experts_of(facts)
        in_head = HEAD_STAGES * experts.per_layer * experts.num_bytes if experts else 0
        return Footprint(
            values + beside,
            facts.vocab_size,
            facts.hidden_size,
            cache=facts.token_values or 0,
            rings=facts.request_values or 0,
            row=facts.row_values or 0,
            stored_bytes=pair.target_num_bytes,
            runs_mapped=facts.model_type == MODEL_TYPE,
            experts=experts,
            head_bytes=int(in_head * HEAD_REST),
        )
    facts = pair.facts or TargetFacts("", 0, 0, 0)
    width = facts.kv_width or facts.hidden_size // 4  # not established: a quarter, as is common
    footprint = Footprint(
        values,
        facts.vocab_size,
        facts.hidden_size,
        facts.inner_size or 4 * facts.hidden_size,
        2 * facts.num_layers * width,
        facts.model_type in DENSE,
        coded_values=facts.coded_values,
        coded_bytes=facts.coded_bytes,
        gpu_coded_values=facts.gpu_coded_values,
        gpu_coded_bytes=facts.gpu_coded_bytes,
    )
    return footprint.plus_head(*_registered_head(pair, footprint))


def _experts_of(facts: TargetFacts) -> ExpertSizes | None:
    """In 4 bits, as DeepSeek-V4 stores them."""
    if not (facts.num_experts and facts.experts_per_token and facts.expert_width):
        return None
    size = expert_bytes(facts.hidden_size, facts.expert_width, FP4_BYTE)
    return ExpertSizes(facts.num_layers, facts.num_experts, facts.experts_per_token, size)


def _registered_head(pair: Pair, target: Footprint) -> tuple[int, int, int]:
    """As _head_values."""
    if pair.head is None:
        return 0, 0, 0
    if isinstance(pair.draft, AssetFolder):
        return _head_values(ModelFolder(pair.draft.path), target)
    num_bytes = pair.draft.num_bytes if isinstance(pair.draft, HubRepo) else None
    values = pair.head.num_parameters or (num_bytes or 0) // 2
    tables = 2 * target.vocab_size * target.hidden_size
    repeats = pair.head.packaging is Packaging.DEEPSPEC and values > tables
    layers = (pair.facts.num_layers if pair.facts else 0) or 1
    return values - tables * repeats, target.cache * HEAD_LAYERS // layers, 0


def brings_own_head(pair: Pair) -> bool:
    return isinstance(pair.draft, HubRepo) and pair.draft.tensor_prefix is not None


def _of_target(config: Mapping[str, Any], values: int) -> Footprint:
    text = config.get("text_config", config)

    def size(*names: str) -> int:
        value = next((text[name] for name in names if isinstance(text.get(name), int)), 0)
        return max(0, int(value))

    return Footprint(
        values,
        size("vocab_size"),
        size("hidden_size", "n_embd", "d_model"),
        size("intermediate_size", "n_inner", "ffn_dim"),
        cache_values(config),
        is_dense(config),
        *v4_values(config),
    )


def is_dense(config: Mapping[str, Any]) -> bool:
    """Whether our own forward runs it, judging by the family."""
    window = config.get("model_type") == "mistral" and config.get("sliding_window") is not None
    slides = "sliding_attention" in (config.get("layer_types") or ())
    return config.get("model_type") in DENSE and not window and not slides


def v4_values(config: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers that a request keeps whatever its length, and those of a row of a pass."""
    v4 = _v4_config(config)
    return (0, 0) if v4 is None else (request_values(v4), row_values(v4))


def _v4_config(config: Mapping[str, Any]) -> DeepseekV4TargetConfig | None:
    """Of DeepSeek-V4's own layout, if it makes sense."""
    try:
        return DeepseekV4TargetConfig.from_json(config) if is_published_layout(config) else None
    except CheckpointError:
        return None


def cache_values(config: Mapping[str, Any]) -> int:
    """Numbers per token in the cache; 0 for a config without the usual keys."""
    if (v4 := _v4_config(config)) is not None:
        return token_values(v4)
    config = config.get("text_config", config)
    try:
        num_heads = config["num_attention_heads"]
        num_kv_heads = config.get("num_key_value_heads") or num_heads
        head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
        return 2 * int(config["num_hidden_layers"]) * int(num_kv_heads) * int(head_dim)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return 0
