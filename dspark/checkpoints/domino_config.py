"""The shape of a Domino head (Huang et al. 2026, arXiv 2605.29707), as SpecForge writes it into
config.json: what belongs to the method is in `dflash_config`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dspark.checkpoints.dflash2_config import NESTED, flattened
from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.checkpoints.head_config import Family, MarkovType, common_keys
from dspark.config import Algorithm, GraftConfig
from dspark.errors import CheckpointError

STATE_PER_FEATURE = 4  # of the published heads: 1024 to 256


@dataclass(frozen=True, slots=True, kw_only=True)
class DominoConfig(DSparkConfig):
    """A DFlash head whose logits are corrected by a GRU over the tokens before.

    The state has `gru_width` numbers, the projector `projector_width` features. The first
    `prefix_length` drafts are not corrected.
    """

    architectures: ClassVar[Mapping[Family, str]] = {"qwen3": "DominoDraftModel"}
    algorithms: ClassVar[tuple[Algorithm, ...]] = ("domino",)

    markov_type: MarkovType = "none"
    projector_width: int = 256
    gru_width: int = 1024
    prefix_length: int = 1

    @property
    def algorithm(self) -> Algorithm:
        return "domino"

    @property
    def table_rank(self) -> int:
        return self.projector_width

    @property
    def untrained(self) -> str | None:
        """As HeadConfig.untrained."""
        if not self.sample_from_anchor:
            return "an anchor that drafts nothing"
        usual = (1, _gru_width(self.projector_width, self.hidden_size))
        is_usual = (self.prefix_length, self.gru_width) == usual
        return None if is_usual else "a projector of another shape"

    @classmethod
    def _parse(cls, raw: Mapping[str, Any]) -> "DominoConfig":
        flat = flattened(raw)
        for key, what in (("is_causal", "a causal block"), ("causal", "a causal block")):
            if flat.get(key):
                raise CheckpointError(
                    f"the Domino head was trained with {what}, which is not supported",
                    "SGLang may run it.",
                )
        drafts_from_anchor = bool(flat.get("shift_label", False))
        return cls(
            **common_keys(flat),
            num_layers=int(flat["num_hidden_layers"]),
            block_size=int(flat["block_size"]) - (not drafts_from_anchor),
            mask_token_id=int(flat["mask_token_id"]),
            sample_from_anchor=drafts_from_anchor,
            projector_width=int(flat["emb_dim"]),
            gru_width=int(flat["gru_hidden_dim"]),
            prefix_length=int(flat.get("pure_draft_prefix_len", 0)),
        )

    @classmethod
    def for_training(
        cls, sizes: Mapping[str, Any], settings: GraftConfig, mask_token_id: int
    ) -> "DominoConfig":
        return cls(
            **sizes,
            num_layers=settings.num_layers,
            block_size=settings.block_size,
            mask_token_id=mask_token_id,
            projector_width=settings.markov_rank,
            gru_width=_gru_width(settings.markov_rank, sizes["hidden_size"]),
        )

    def _check(self) -> None:
        DSparkConfig._check(self)
        if self.prefix_length > self.block_size:
            raise ValueError(f"pure_draft_prefix_len {self.prefix_length} is longer than the block")

    def to_json(self) -> dict[str, Any]:
        common = self._common_json()
        taps = common.pop("target_layer_ids")
        return {
            "architectures": [self.architectures[self.family]],
            **common,
            "num_hidden_layers": self.num_layers,
            "is_causal": False,
            "layer_types": ["full_attention"] * self.num_layers,
            "block_size": self.block_rows,
            NESTED: {
                "projector_type": "domino",
                "mask_token_id": self.mask_token_id,
                "target_layer_ids": taps,
                "emb_dim": self.projector_width,
                "gru_hidden_dim": self.gru_width,
                "pure_draft_prefix_len": self.prefix_length,
                "shift_label": self.sample_from_anchor,
            },
        }

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        hidden, state, width = self.hidden_size, self.gru_width, self.projector_width
        return DSparkConfig.expected_tensors(self) | {
            "prefix_gru.weight_ih_l0": (3 * state, hidden),
            "prefix_gru.weight_hh_l0": (3 * state, state),
            "embed_proj.0.weight": (width, hidden + state),
            "embed_proj.2.weight": (self.vocab_size, width),
        }


def _gru_width(projector_width: int, hidden_size: int) -> int:
    """The published ratio, but no more than the embeddings that the GRU reads."""
    return min(STATE_PER_FEATURE * projector_width, hidden_size)
