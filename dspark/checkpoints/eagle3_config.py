"""The shape of an EAGLE-3 head (Li et al. 2025), as DeepSpec writes it into config.json. With
`ttt_length` 1 it is MTP-1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.checkpoints.head_config import (
    Family,
    HeadConfig,
    common_keys,
    layer_tensors,
)
from dspark.errors import CheckpointError

EAGLE3_ARCHITECTURES: Mapping[Family, str] = {
    "qwen3": "Qwen3Eagle3Model",
    "gemma4": "Gemma4Eagle3Model",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle3Config(HeadConfig):
    """Sizes of a head of one layer. It drafts `ttt_length` tokens, one pass each."""

    ttt_length: int
    step_loss_decay: float = 0.8

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

    def to_json(self) -> dict[str, Any]:
        """The keys that DeepSpec's own loader reads."""
        return {
            "architectures": [EAGLE3_ARCHITECTURES[self.family]],
            **self._common_json(),
            "num_hidden_layers": 1,
            "draft_num_hidden_layers": 1,
            "layer_types": ["full_attention"],
            "ttt_length": self.ttt_length,
            "step_loss_decay": self.step_loss_decay,
        }


DraftConfig = DSparkConfig | Eagle3Config


def expected_eagle3_tensors(config: Eagle3Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in DeepSpec's layout, embedding and output head included."""
    hidden, layer = config.hidden_size, layer_tensors(config, config.attention_width)
    return {
        "embed_tokens.weight": (config.vocab_size, hidden),
        "lm_head.weight": (config.vocab_size, hidden),
        "norm.weight": (hidden,),
        "fc.weight": (hidden, config.tap_width),
        "layers.0.hidden_norm.weight": (hidden,),
        **{f"layers.0.{name}": shape for name, shape in layer.items()},
    }
