"""The shape of a DSpark head, as DeepSpec writes it into config.json (DeepSeek 2026)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dspark.checkpoints.config_values import architecture_of
from dspark.checkpoints.head_config import (
    AnyHeadConfig,
    Calibration,
    Family,
    HeadConfig,
    MarkovType,
    common_keys,
    layer_tensors,
)
from dspark.config import Algorithm, GraftConfig
from dspark.errors import CheckpointError

LARGEST_BLOCK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DSparkConfig(HeadConfig):
    """Sizes of a head that drafts `block_size` tokens at once.

    `sample_from_anchor`: the anchor's row, 0, predicts the first draft; otherwise row 1 does, and
    a block has one row more than drafts. `draft_vocab_size`: rows of the output head if it knows
    fewer tokens than the target; the tensor d2t maps them to the target's ids.
    Our additions: `confidence_temperatures` and `confidence_shifts` (one per position, None for
    all 1 and all 0) and `greedy_confidence`, where greedy requests have their own calibration.
    """

    architectures: ClassVar[Mapping[Family, str]] = {
        "qwen3": "Qwen3DSparkModel",
        "gemma4": "Gemma4DSparkModel",
    }
    algorithms: ClassVar[tuple[Algorithm, ...]] = ("dspark", "dflash")
    has_mask: ClassVar[bool] = True

    # field(): the property of the same name in HeadConfig is no default
    num_layers: int = field()
    block_size: int = field()
    mask_token_id: int = field()
    markov_type: MarkovType = "vanilla"
    markov_rank: int = 0
    has_confidence: bool = False
    confidence_with_markov: bool = False
    confidence_temperatures: tuple[float, ...] | None = None
    confidence_shifts: tuple[float, ...] | None = None
    greedy_confidence: Calibration | None = None
    sample_from_anchor: bool = True
    draft_vocab_size: int | None = None

    @property
    def algorithm(self) -> Algorithm:
        """DFlash is DSpark without a Markov head."""
        return "dflash" if self.markov_type == "none" else "dspark"

    @property
    def sampled_calibration(self) -> Calibration:
        none = Calibration.none(self.block_size)
        return Calibration(
            self.confidence_temperatures or none.temperatures,
            self.confidence_shifts or none.shifts,
        )

    @property
    def greedy_calibration(self) -> Calibration:
        return self.greedy_confidence or self.sampled_calibration

    @property
    def is_calibrated(self) -> bool:
        own = (self.confidence_temperatures, self.confidence_shifts, self.greedy_confidence)
        return any(each is not None for each in own)

    @property
    def block_rows(self) -> int:
        """Rows of a block: the anchor and the masks."""
        return self.block_size + (not self.sample_from_anchor)

    @property
    def num_columns(self) -> int:
        """Vocabulary size of the output head and the Markov head."""
        return self.draft_vocab_size or self.vocab_size

    @classmethod
    def _parse(cls, raw: Mapping[str, Any]) -> "DSparkConfig":
        architecture = architecture_of(raw)
        if architecture not in cls.architectures.values():
            raise CheckpointError(
                f"the head's architecture is {architecture}, not {cls.architectures['qwen3']}",
                "dspark convert converts other layouts to DeepSpec's.",
            )
        rank = int(raw["markov_rank"])
        return cls(
            **common_keys(raw),
            num_layers=int(raw["num_hidden_layers"]),
            block_size=int(raw["block_size"]),
            mask_token_id=int(raw["mask_token_id"]),
            markov_type=raw["markov_head_type"] if rank > 0 else "none",
            markov_rank=rank,
            has_confidence=bool(raw["enable_confidence_head"]),
            confidence_with_markov=bool(raw.get("confidence_head_with_markov", False)),
            confidence_temperatures=_numbers_or_none(raw, "confidence_temperatures"),
            confidence_shifts=_numbers_or_none(raw, "confidence_shifts"),
            greedy_confidence=_greedy_confidence(raw),
        )

    def _check(self) -> None:
        HeadConfig._check(self)
        if self.markov_type not in ("none", "vanilla", "gated", "rnn"):
            raise ValueError(f"markov_head_type {self.markov_type!r} is unknown")
        if self.has_confidence and self.confidence_with_markov and self.markov_rank == 0:
            raise ValueError("confidence_head_with_markov needs markov_rank > 0")
        if not 1 <= self.block_size <= LARGEST_BLOCK or not self.mask_token_id < self.vocab_size:
            raise ValueError("block_size or mask_token_id is out of range")
        for calibration in (self.sampled_calibration, self.greedy_calibration):
            _check_calibration(calibration, self.block_size)

    @classmethod
    def for_training(
        cls, sizes: Mapping[str, Any], settings: GraftConfig, mask_token_id: int
    ) -> "DSparkConfig":
        has_markov = settings.markov_type != "none"
        return cls(
            **sizes,
            num_layers=settings.num_layers,
            block_size=settings.block_size,
            mask_token_id=mask_token_id,
            markov_type=settings.markov_type,
            markov_rank=settings.markov_rank if has_markov else 0,
            has_confidence=settings.has_confidence,
            confidence_with_markov=settings.has_confidence and has_markov,
        )

    def to_json(self) -> dict[str, Any]:
        calibration: dict[str, Any] = {}
        if self.confidence_temperatures is not None:
            calibration["confidence_temperatures"] = list(self.confidence_temperatures)
        if self.confidence_shifts is not None:
            calibration["confidence_shifts"] = list(self.confidence_shifts)
        if self.greedy_confidence is not None:
            calibration["greedy_confidence"] = self.greedy_confidence.to_json()
        return {
            "architectures": [self.architectures[self.family]],
            **self._common_json(),
            "num_hidden_layers": self.num_layers,
            "layer_types": ["full_attention"] * self.num_layers,
            "block_size": self.block_size,
            "mask_token_id": self.mask_token_id,
            "num_anchors": 512,  # required by DeepSpec's loader; decoding does not use it
            "markov_rank": self.markov_rank,
            "markov_head_type": "vanilla" if self.markov_type == "none" else self.markov_type,
            "enable_confidence_head": self.has_confidence,
            "confidence_head_with_markov": self.confidence_with_markov,
            **calibration,
        }

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        hidden, rank, columns = self.hidden_size, self.markov_rank, self.num_columns
        layer = layer_tensors(self, hidden)
        shapes: dict[str, tuple[int, ...]] = {
            "embed_tokens.weight": (self.vocab_size, hidden),
            "lm_head.weight": (columns, hidden),
            "norm.weight": (hidden,),
            "fc.weight": (hidden, self.tap_width),
            "hidden_norm.weight": (hidden,),
            **{f"layers.{i}.{n}": s for i in range(self.num_layers) for n, s in layer.items()},
        }
        if self.draft_vocab_size:
            shapes["d2t"] = (columns,)
        if self.markov_type != "none":
            shapes |= {
                "markov_head.markov_w1.weight": (self.vocab_size, rank),
                "markov_head.markov_w2.weight": (columns, rank),
            }
        if self.markov_type == "gated":
            shapes |= {
                "markov_head.gate_proj.weight": (rank, hidden + rank),
                "markov_head.gate_proj.bias": (rank,),
            }
        if self.markov_type == "rnn":
            shapes |= {
                "markov_head.joint_proj.weight": (3 * rank, 2 * rank + hidden),
                "markov_head.joint_proj.bias": (3 * rank,),
            }
        if self.has_confidence:
            width = hidden + (rank if self.confidence_with_markov else 0)
            shapes |= {"confidence_head.proj.weight": (1, width), "confidence_head.proj.bias": (1,)}
        return shapes


def calibrated_for(config: AnyHeadConfig) -> str | None:
    """The requests whose confidences are calibrated, in words; None without a confidence head."""
    if not config.has_confidence or not isinstance(config, DSparkConfig):
        return None
    if config.greedy_confidence is not None:
        return "greedy and sampled requests apart"
    return "one for all requests" if config.is_calibrated else "none"


def _check_calibration(calibration: Calibration, block_size: int) -> None:
    temperatures, shifts = calibration.temperatures, calibration.shifts
    for numbers, name in ((temperatures, "temperatures"), (shifts, "shifts")):
        if len(numbers) != block_size:
            raise ValueError(
                f"the confidences have {len(numbers)} {name} for a block of {block_size}"
            )
    if not all(math.isfinite(t) and t > 0.0 for t in temperatures):
        raise ValueError("the temperatures of the confidences are not all positive numbers")
    if not all(map(math.isfinite, shifts)):
        raise ValueError("the shifts of the confidences are not all numbers")


def _greedy_confidence(raw: Mapping[str, Any]) -> Calibration | None:
    stated = raw.get("greedy_confidence")
    if stated is None:
        return None
    if not isinstance(stated, Mapping):
        raise ValueError(f"greedy_confidence {stated!r} is no object")
    temperatures = _numbers_or_none(stated, "temperatures")
    if temperatures is None:
        raise ValueError("greedy_confidence has no temperatures")
    shifts = _numbers_or_none(stated, "shifts")
    # older heads have one for all positions
    return Calibration(
        temperatures, shifts or (float(stated.get("shift", 0.0)),) * len(temperatures)
    )


def _numbers_or_none(raw: Mapping[str, Any], key: str) -> tuple[float, ...] | None:
    value = raw.get(key)
    if value is not None and not (isinstance(value, list) and value):
        raise ValueError(f"{key} {value!r} is not a list of numbers")
    return None if value is None else tuple(float(number) for number in value)
