"""The layers of a DeepSeek-V4 target over its caches."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from dspark.checkpoints.deepseek_v4_cache_layout import rows_at_once
from dspark.checkpoints.deepseek_v4_target import Block, TargetWeights
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.deepseek_v4.attention import Attention
from dspark.models.deepseek_v4.cache import RequestCaches, Stretch, split_stretches
from dspark.models.deepseek_v4.float_experts import feed
from dspark.models.deepseek_v4.layer_program import is_supported
from dspark.models.deepseek_v4.native_pass import FeedExperts, NativePass
from dspark.models.deepseek_v4.rotation import RotationTable
from dspark.models.deepseek_v4.rounded_experts import feed_rounded
from dspark.models.deepseek_v4.routing import Router
from dspark.models.deepseek_v4.row_wise import norm, ordered_sum
from dspark.models.deepseek_v4.streams import StreamMixer, collapse, taken_up
from dspark_kernels.cpu.exact import fma
from dspark_kernels.cpu.file_weight import FileTable
from dspark_kernels.cpu.float_matrix import multiply_floats
from dspark_kernels.cpu.runtime import Runtime, current


class Decoder:
    def __init__(
        self, config: DeepseekV4TargetConfig, weights: TargetWeights, feed_experts: FeedExperts
    ) -> None:
        self._config, self._weights, self._feed = config, weights, feed_experts
        self.routes = torch.empty(config.num_layers, 0, 0, dtype=torch.int64)  # of the last run
        self._made: tuple[Runtime, Sequence[int], NativePass] | None = None
        self._rotations = [
            RotationTable(rope, config.rope_dim)
            for rope in (config.window_rope, config.compressed_rope)
        ]
        self._layers = [
            _Layer(config, index, block, self._rotations[config.ratios[index] > 0], feed_experts)
            for index, block in enumerate(weights.blocks)
        ]
        self._embedding = FileTable(weights.matrices["embed.weight"])
        fn = weights.matrices["hc_head_fn"]
        self._collapse = partial(multiply_floats, weight=fn)

    def run(
        self,
        token_ids: torch.Tensor,
        caches: RequestCaches,
        stretches: Sequence[Stretch],
        tap_layers: Sequence[int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of `stretches` -> hidden states [N, H] after the final norm, and taps
        [N, T * H]: means of the streams behind these layers."""
        most = rows_at_once(self._config, max(each.end for each in stretches))
        if len(token_ids) <= most:
            return self._pass(token_ids, caches, stretches, tap_layers)
        parts, routes = [], []
        for ids, part in zip(token_ids.split(most), split_stretches(stretches, most), strict=True):
            parts.append(self._pass(ids, caches, part, tap_layers))
            routes.append(self.routes)
        self.routes = torch.cat(routes, dim=1)
        hidden, taps = (torch.cat(each) for each in zip(*parts, strict=True))
        return hidden, taps

    def _pass(
        self,
        token_ids: torch.Tensor,
        caches: RequestCaches,
        stretches: Sequence[Stretch],
        tap_layers: Sequence[int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        config, tensors = self._config, self._weights.tensors
        embedded = self._embedding[token_ids]
        if (native := self._native(tap_layers)) is not None:
            found = native.run(embedded, token_ids, caches, stretches, self._rotations)
            caches.wrote(stretches)
            self.routes = native.routes(len(embedded))
            return found
        positions = torch.cat([torch.arange(each.start, each.end) for each in stretches])
        streams = embedded.unsqueeze(1).repeat(1, config.num_streams, 1)
        taps = {}
        for index, layer in enumerate(self._layers):
            streams = layer(streams, token_ids, positions, caches, stretches)
            if index in tap_layers:
                taps[index] = ordered_sum(streams, 1)[:, 0] / config.num_streams
        caches.wrote(stretches)
        self.routes = torch.stack([layer.route for layer in self._layers])
        hidden = collapse(streams, config, tensors, self._collapse)
        hidden = norm(hidden, tensors["norm.weight"], config.rms_norm_eps)
        tapped = [taps[layer] for layer in tap_layers]
        return hidden, torch.cat(tapped, dim=1) if tapped else hidden.new_empty(len(hidden), 0)

    def _native(self, tap_layers: Sequence[int]) -> NativePass | None:
        """None where torch does it all."""
        runtime = current()
        if runtime is None or not is_supported(self._config):
            return None
        if self._made is None or self._made[:2] != (runtime, tap_layers):
            feed = None if self._feed is feed_rounded else self._feed
            native = NativePass(self._config, self._weights, tap_layers, feed, runtime)
            self._made = runtime, tap_layers, native
        return self._made[2]


class _Layer:
    def __init__(
        self,
        config: DeepseekV4TargetConfig,
        index: int,
        block: Block,
        rotation: RotationTable,
        feed_experts: FeedExperts,
    ) -> None:
        self._config, self._block, self._feed_experts = config, block, feed_experts
        self._attention = Attention(config, index, block, rotation)
        self._router = Router(config, block)
        self.route = torch.empty(0, 0, dtype=torch.int64)  # of the last rows, [N, k]
        self._around_attention, self._around_experts = (
            StreamMixer(config, block.tensors, name, self._times(f"{name}_fn"))
            for name in ("hc_attn", "hc_ffn")
        )

    def __call__(
        self,
        streams: torch.Tensor,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        caches: RequestCaches,
        stretches: Sequence[Stretch],
    ) -> torch.Tensor:
        """streams [N, S, H] -> the same."""
        tensors, eps = self._block.tensors, self._config.rms_norm_eps
        x, post, mix = self._around_attention(streams)
        x = norm(x, tensors["attn_norm.weight"], eps)
        attended = self._attention(x, positions, caches, stretches)
        streams = taken_up(streams, attended, post, mix)
        x, post, mix = self._around_experts(streams)
        x = norm(x, tensors["ffn_norm.weight"], eps)
        return taken_up(streams, self._experts(x, token_ids), post, mix)

    def _experts(self, x: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, H]: the shared expert, then the routed ones in the order of the route."""
        block, limit = self._block, self._config.swiglu_limit
        expert_ids, shares = self._router(x, token_ids)
        self.route = expert_ids
        said = self._feed_experts(x, expert_ids, block.experts, limit)
        gate, up, down = (
            block.matrices[f"ffn.shared_experts.{name}.weight"] for name in ("w1", "w3", "w2")
        )
        out = feed(x, gate, up, down, limit)
        for place in range(expert_ids.shape[1]):
            out = fma(said[:, place], shares[:, place, None], out)
        return out

    def _times(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        return partial(multiply_floats, weight=self._block.matrices[name])
