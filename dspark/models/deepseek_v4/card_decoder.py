"""DeepSeek-V4's layers on a card: the place of Decoder there."""

from collections.abc import Sequence

import torch

from dspark.checkpoints.deepseek_v4_cache_layout import MAX_ROWS
from dspark.checkpoints.deepseek_v4_target import TargetWeights
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.card_expert_store import CardExpertStore
from dspark.models.deepseek_v4.cache import RequestCaches, Stretch
from dspark.models.deepseek_v4.card_experts import CardExperts
from dspark.models.deepseek_v4.card_layer import FeedRows
from dspark.models.deepseek_v4.card_pass import CardPass
from dspark.models.deepseek_v4.streamed_experts import StreamedExperts
from dspark_kernels.cpu.file_weight import FileTable


class CardDecoder:
    """Passes of few rows take experts from slots or ask the host; with `streams`, longer ones let
    whole layers stream through the card."""

    def __init__(
        self,
        config: DeepseekV4TargetConfig,
        weights: TargetWeights,
        tap_layers: Sequence[int],
        store: CardExpertStore,
        *,
        streams: bool,
    ) -> None:
        self.device, self._embedding = store.device, FileTable(weights.matrices["embed.weight"])
        self._pass = CardPass(config, weights, tap_layers, store.device)
        self._few = CardExperts(config, store, store.device)
        self._many: StreamedExperts | None = None
        if streams:
            like = weights.blocks[0].experts[0]
            self._many = StreamedExperts(config, like, store.at, store.device)
        self.routes = torch.empty(config.num_layers, 0, 0, dtype=torch.int64)  # of the last run

    def run(
        self,
        token_ids: torch.Tensor,
        caches: RequestCaches,
        stretches: Sequence[Stretch],
        tap_layers: Sequence[int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As Decoder.run, with the layers tapped that it was made for. Raises what the host's part
        of a pass raised."""
        on_host = token_ids.cpu()
        embedded = self._embedding[on_host].to(self.device)
        is_many = self._many is not None and len(on_host) > MAX_ROWS
        feed: FeedRows = self._many if is_many and self._many is not None else self._few
        try:
            found = self._pass.run(embedded, on_host.tolist(), caches, stretches, feed)
        except BaseException:
            if self.device.type == "cuda":  # what was launched ends before anything is used again
                torch.cuda.synchronize(self.device)
            raise
        caches.wrote(stretches)
        self.routes = self._pass.routes(len(on_host))
        return found

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, H] -> logits [N, V]."""
        return self._pass.head(hidden)
