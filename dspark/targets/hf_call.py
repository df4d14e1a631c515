"""How to call a transformers class, and how its cache is rolled back."""

import inspect
from typing import Any

import torch
from transformers import DynamicCache

from dspark.checkpoints.deepseek_v4_config import MODEL_TYPE
from dspark.errors import CheckpointError
from dspark.targets.base import Rollback

# cache layers that crop restores; a dummy layer reads another layer's keys
CROPPED = {"DynamicLayer", "DynamicSlidingWindowLayer", "DynamicIndexedLayer", "DummyLayer"}
# a pass of several rows would ignore the cache, so rows after a cache run one by one
STEPWISE = {"falcon_mamba", "jamba", "mamba", "prophetnet", "zamba"}
REFUSED = {
    **dict.fromkeys(("cpmant", "reformer", "xlnet"), "attend to later tokens"),
    **dict.fromkeys(("minimax", "xlstm"), "use a non-standard cache"),
    "moshi": "attend to prompts and answers differently",
    "recurrent_gemma": "keep the state of a text inside their layers",
}


class HfCall:
    """One forward of one request. Raises CheckpointError for a class that cannot be decoded."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._config = model.config.get_text_config()
        self._has_shared_keys = bool(getattr(self._config, "num_kv_shared_layers", None))
        kind = self._config.model_type
        if kind in REFUSED:
            raise CheckpointError(
                f"models of type {kind} cannot be decoded: they {REFUSED[kind]}",
                "Use a model of another family.",
            )
        self.is_stepwise = kind in STEPWISE
        self._takes = set(inspect.signature(model.forward).parameters)
        # the name since transformers 5.24
        names = [name for name in ("cache", "past_key_values") if name in self._takes]
        self._cache_keyword = names[0] if names else None
        self.rollback = self._rollback()

    def _rollback(self) -> Rollback:
        if self._config.model_type == MODEL_TYPE:
            return "rebuild"
        if self._cache_keyword is None:
            return "rerun"
        kinds = {type(layer).__name__ for layer in DynamicCache(config=self._config).layers}
        return "crop" if kinds and kinds <= CROPPED else "replay"

    def new_cache(self) -> Any:
        if self.rollback == "rerun":
            return None
        cache: Any = DynamicCache(config=self._config)
        if self.rollback == "crop":
            cache.activate_past_recording()  # windows keep rows that slid out until the next crop
        return cache

    def __call__(
        self, cache: Any, token_ids: torch.Tensor, start: int, num_kept: int
    ) -> torch.Tensor:
        """token_ids [N], the first at position `start` -> logits [num_kept, V] of the last."""
        if self.is_stepwise and start and token_ids.shape[0] > 1:
            rows = [self(cache, row, start + i, 1) for i, row in enumerate(token_ids.split(1))]
            return torch.cat(rows[-num_kept:])
        end, device = start + token_ids.shape[0], token_ids.device
        given: dict[str, Any] = {"input_ids": token_ids.unsqueeze(0)}
        if "position_ids" in self._takes:
            given["position_ids"] = torch.arange(start, end, device=device).unsqueeze(0)
        if self.rollback != "rerun":
            given |= {str(self._cache_keyword): cache, "use_cache": True}
        elif "use_cache" in self._takes:
            given["use_cache"] = False
        if "logits_to_keep" in self._takes:
            given["logits_to_keep"] = num_kept
            if self._has_shared_keys:  # given a number, Gemma 4 drops rows before the taps
                given["logits_to_keep"] = torch.arange(-num_kept, 0, device=device)
        logits: torch.Tensor = self._model(**given).logits[0, -num_kept:]
        return logits
