"""The shape of a DFlash 2 head (z-lab 2026), as its authors write it into config.json: what belongs
to the method is in `dflash_config`, the rest is a Qwen3 config."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dspark.checkpoints.config_values import positive_or_none
from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.checkpoints.head_config import Family, MarkovType, common_keys
from dspark.config import Algorithm, GraftConfig
from dspark.errors import CheckpointError

NESTED = "dflash_config"
PUBLISHED_GROUP, PUBLISHED_CANDIDATES = 16, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DFlash2Config(DSparkConfig):
    """A DFlash head whose rows are also convolved along the block, and whose drafts a selector
    chooses among the `selector_top_k` likeliest tokens.

    `conv_group_size` channels share a coefficient. Logits are multiplied by `output_multiplier`
    before they are capped, the embeddings of a block by `input_embedding_scale`. A row sees keys
    less than `sliding_window` positions away; None for all.
    """

    architectures: ClassVar[Mapping[Family, str]] = {"qwen3": "DFlash2DraftModel"}
    algorithms: ClassVar[tuple[Algorithm, ...]] = ("dflash2",)

    markov_type: MarkovType = "none"
    sample_from_anchor: bool = False
    conv_kernel_size: int = 2
    conv_group_size: int = PUBLISHED_GROUP
    selector_rank: int = 256
    selector_top_k: int = PUBLISHED_CANDIDATES
    input_embedding_scale: float = 1.0
    output_multiplier: float = 1.0
    sliding_window: int | None = None

    @property
    def algorithm(self) -> Algorithm:
        return "dflash2"

    @property
    def scales(self) -> dict[str, float]:
        """Multipliers other than 1, by their keys in config.json."""
        names = ("input_embedding_scale", "output_multiplier")
        return {name: getattr(self, name) for name in names if getattr(self, name) != 1.0}

    @property
    def table_rank(self) -> int:
        return self.selector_rank

    @property
    def untrained(self) -> str | None:
        """As HeadConfig.untrained."""
        if self.sliding_window is not None:
            return "a sliding window"
        if self.scales:
            return "scaled embeddings or logits"
        published = (2, math.gcd(PUBLISHED_GROUP, self.hidden_size))
        if (self.conv_kernel_size, self.conv_group_size) != published:
            return "convolutions of another shape"
        expected = min(PUBLISHED_CANDIDATES, self.vocab_size)
        return None if self.selector_top_k == expected else "another number of candidates"

    @classmethod
    def _parse(cls, raw: Mapping[str, Any]) -> "DFlash2Config":
        flat = flattened(raw)
        window = _window(flat)
        _refuse_unbuilt(flat, window)
        return cls(
            **common_keys({k: v for k, v in flat.items() if k != "layer_types"}),
            num_layers=int(flat["num_hidden_layers"]),
            block_size=int(flat["block_size"]) - 1,
            mask_token_id=int(flat["mask_token_id"]),
            conv_kernel_size=int(flat["conv_kernel_size"]),
            conv_group_size=int(flat["conv_group_size"]),
            selector_rank=int(flat["selector_rank"]),
            selector_top_k=int(flat["selector_top_k"]),
            input_embedding_scale=positive_or_none(flat, "input_embedding_scale") or 1.0,
            output_multiplier=positive_or_none(flat, "output_multiplier") or 1.0,
            sliding_window=window,
        )

    def _check(self) -> None:
        DSparkConfig._check(self)
        if self.conv_kernel_size > self.block_rows:
            raise ValueError(f"conv_kernel_size {self.conv_kernel_size} is longer than the block")
        if self.hidden_size % self.conv_group_size:
            raise ValueError(f"conv_group_size {self.conv_group_size} does not divide hidden_size")
        if self.selector_top_k > self.vocab_size:
            raise ValueError(f"selector_top_k {self.selector_top_k} exceeds the vocabulary")
        if self.sliding_window is not None and self.sliding_window < self.block_rows:
            raise ValueError(f"sliding_window {self.sliding_window} is shorter than the block")

    @classmethod
    def for_training(
        cls, sizes: Mapping[str, Any], settings: GraftConfig, mask_token_id: int
    ) -> "DFlash2Config":
        return cls(
            **sizes,
            num_layers=settings.num_layers,
            block_size=settings.block_size,
            mask_token_id=mask_token_id,
            conv_group_size=math.gcd(PUBLISHED_GROUP, sizes["hidden_size"]),
            selector_rank=settings.markov_rank,
            selector_top_k=min(PUBLISHED_CANDIDATES, sizes["vocab_size"]),
        )

    def to_json(self) -> dict[str, Any]:
        common = self._common_json()
        window, kind = self.sliding_window, "sliding" if self.sliding_window else "full"
        of_method = ("target_layer_ids", "final_logit_softcapping")
        return {
            "architectures": [self.architectures[self.family]],
            **{key: value for key, value in common.items() if key not in of_method},
            "num_hidden_layers": self.num_layers,
            "is_causal": False,  # engines guess otherwise from the kind of layers
            "layer_types": [f"{kind}_attention"] * self.num_layers,
            "sliding_window": window,
            "use_sliding_window": window is not None,
            NESTED: {
                "block_size": self.block_rows,
                "mask_token_id": self.mask_token_id,
                **{key: common[key] for key in of_method if key in common},
                "conv_kernel_size": self.conv_kernel_size,
                "conv_group_size": self.conv_group_size,
                "selector_rank": self.selector_rank,
                "selector_top_k": self.selector_top_k,
                **self.scales,
            },
        }

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        hidden, taps = self.hidden_size, self.conv_kernel_size
        table = (self.vocab_size, self.selector_rank)
        shapes = DSparkConfig.expected_tensors(self)
        for layer in range(self.num_layers):
            for name in ("attention_conv", "mlp_conv"):
                at = f"layers.{layer}.{name}"
                shapes[f"{at}.base_kernel"] = (2, taps, hidden)
                coefficients = 2 * taps * hidden // self.conv_group_size
                shapes[f"{at}.kernel_projection.weight"] = (coefficients, hidden)
        return shapes | {
            "candidate_selector.hidden_projection.weight": (self.selector_rank, hidden),
            "candidate_selector.predecessor_codebook": table,
            "candidate_selector.successor_codebook": table,
        }


def flattened(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the method beside the others, the nested ones first."""
    nested = raw.get(NESTED)
    return {"num_target_layers": None, **raw, **(nested if isinstance(nested, dict) else {})}


def _window(flat: Mapping[str, Any]) -> int | None:
    """Raises CheckpointError where only some layers have one."""
    slides = {kind == "sliding_attention" for kind in flat.get("layer_types") or ()}
    if slides == {True, False}:
        raise CheckpointError(
            "the head has layers with and without a sliding window, which is not supported",
            "vLLM and SGLang run such heads.",
        )
    is_used = slides == {True} and flat.get("use_sliding_window") is not False
    return int(flat["sliding_window"]) if is_used else None


def _refuse_unbuilt(flat: Mapping[str, Any], window: int | None) -> None:
    """Raises CheckpointError naming what such a head may have and this one must not."""
    is_causal = flat.get("is_causal")
    if is_causal is None:  # then a window means a causal block, unless speculators says not
        is_causal = window is not None and not flat.get("sliding_window_non_causal")
    unbuilt = {
        "a causal block": is_causal or flat.get("causal"),
        "an anchor that drafts": flat.get("sample_from_anchor"),
        "attention sinks": flat.get("attention_sink_bias"),
        "a reduced vocabulary": flat.get("draft_vocab_size") not in (None, flat.get("vocab_size")),
    }
    for what, is_there in unbuilt.items():
        if is_there:
            raise CheckpointError(
                f"the DFlash 2 head was trained with {what}, which is not supported",
                "vLLM and SGLang may run it.",
            )
