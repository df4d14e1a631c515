"""The shape of an EAGLE-3 head (Li et al. 2025), as DeepSpec writes it into config.json. With
`ttt_length` 1 it is MTP-1."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dspark.checkpoints.head_config import Family, HeadConfig, common_keys, layer_tensors
from dspark.config import Algorithm, GraftConfig
from dspark.errors import CheckpointError, InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle3Config(HeadConfig):
    """Sizes of a head of one layer. It drafts `ttt_length` tokens, one pass each."""

    architectures: ClassVar[Mapping[Family, str]] = {
        "qwen3": "Qwen3Eagle3Model",
        "gemma4": "Gemma4Eagle3Model",
    }
    algorithms: ClassVar[tuple[Algorithm, ...]] = ("eagle3", "mtp")

    ttt_length: int
    step_loss_decay: float = 0.8

    @property
    def algorithm(self) -> Algorithm:
        """MTP-1 is Eagle3 with a single draft."""
        return "eagle3" if self.ttt_length > 1 else "mtp"

    @property
    def num_layers(self) -> int:
        return 1

    @property
    def block_size(self) -> int:
        return self.ttt_length

    @property
    def attention_width(self) -> int:
        """Width of the input of queries, keys and values: a token's embedding and a hidden
        state."""
        return 2 * self.hidden_size

    @classmethod
    def _parse(cls, raw: Mapping[str, Any]) -> "Eagle3Config":
        if int(raw["num_hidden_layers"]) != 1:
            raise CheckpointError(
                f"the Eagle3 head has {raw['num_hidden_layers']} layers",
                "Only Eagle3 heads of one layer can be read.",
            )
        return cls(
            **common_keys(raw),
            ttt_length=int(raw["ttt_length"]),
            step_loss_decay=float(raw["step_loss_decay"]),
        )

    @classmethod
    def for_training(
        cls, sizes: Mapping[str, Any], settings: GraftConfig, mask_token_id: int
    ) -> "Eagle3Config":
        if settings.num_layers != 1:
            raise InputError(
                f"an {settings.algorithm} head has one layer, not {settings.num_layers}",
                "Leave --layers out, or make the layer wider with --intermediate-size.",
            )
        return cls(
            **sizes,
            ttt_length=settings.block_size,
            step_loss_decay=round(math.exp(-1.0 / settings.position_decay), 6),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "architectures": [self.architectures[self.family]],
            **self._common_json(),
            "num_hidden_layers": 1,
            "draft_num_hidden_layers": 1,
            "layer_types": ["full_attention"],
            "ttt_length": self.ttt_length,
            "step_loss_decay": self.step_loss_decay,
        }

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        hidden, layer = self.hidden_size, layer_tensors(self, self.attention_width)
        return {
            "embed_tokens.weight": (self.vocab_size, hidden),
            "lm_head.weight": (self.vocab_size, hidden),
            "norm.weight": (hidden,),
            "fc.weight": (hidden, self.tap_width),
            "layers.0.hidden_norm.weight": (hidden,),
            **{f"layers.0.{name}": shape for name, shape in layer.items()},
        }
