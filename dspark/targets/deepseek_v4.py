"""Rolls back DeepSeek-V4's cache without running the accepted rows again.

A layer keeps a window of keys and, if compressed, finished windows, the rows of an unfinished one,
and state passed between windows. All of it follows from the state before a pass and the rows of the
pass. transformers builds new tensors and never writes into old ones, so references are enough.
"""

from typing import Any

import torch

WRAPPED = ("update", "store_compression_weights", "update_overlap_state")


class RecordedPass:
    """Created before a pass; `keep` sets the cache to the state after that pass's first rows
    only."""

    def __init__(self, cache: Any) -> None:
        self._layers = [_RecordedLayer(layer) for layer in cache.layers]

    def keep(self, num_kept: int, num_rows: int) -> None:
        for layer in self._layers:
            layer.stop()
            if num_kept < num_rows:
                layer.rebuild(num_kept)


class _RecordedLayer:
    """Wraps the layer's methods until `stop`, and records their arguments."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._before: dict[str, Any] = {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in vars(layer).items()
        }
        self._keys: torch.Tensor | None = None
        self._fed: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._windows: dict[str, tuple[torch.Tensor, torch.Tensor, int]] = {}
        for name in WRAPPED:
            if hasattr(layer, name):
                setattr(layer, name, getattr(self, f"_{name}"))

    def stop(self) -> None:
        for name in WRAPPED:
            vars(self._layer).pop(name, None)

    def rebuild(self, num_kept: int) -> None:
        layer, before = self._layer, self._before
        assert self._keys is not None
        new = self._keys[:, :, :num_kept]
        keys = torch.cat([before["keys"], new], dim=2) if before["is_initialized"] else new
        layer.keys = layer.values = keys[:, :, -layer.sliding_window + 1 :]
        layer.cumulative_length = before["cumulative_length"] + num_kept
        for name, fed in self._fed.items():
            self._rebuild_compressed(name, fed, num_kept)

    def _rebuild_compressed(
        self, name: str, fed: tuple[torch.Tensor, torch.Tensor], num_kept: int
    ) -> None:
        layer, before = self._layer, self._before
        waiting = before["buffer_kv"][name], before["buffer_gate"][name]
        kv, gate = (
            new[:, :num_kept] if old is None else torch.cat([old, new[:, :num_kept]], dim=1)
            for old, new in zip(waiting, fed, strict=True)
        )
        full = kv.shape[1] // layer.compress_rate
        used = full * layer.compress_rate
        layer.buffer_kv[name], layer.buffer_gate[name] = kv[:, used:], gate[:, used:]
        layer.entry_count[name] = before["entry_count"][name] + full
        layer.compressed_kv[name] = layer.compressed_kv[name][:, : layer.entry_count[name]]
        if name not in self._windows:
            return
        window_kv, window_gate, width = self._windows[name]
        if full:
            layer.overlap_kv[name] = window_kv[:, full - 1, :, :width].clone()
            layer.overlap_gate[name] = window_gate[:, full - 1, :, :width].clone()
        else:
            layer.overlap_kv[name] = before["overlap_kv"][name]
            layer.overlap_gate[name] = before["overlap_gate"][name]

    def _update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **more: Any) -> Any:
        self._keys = keys
        return type(self._layer).update(self._layer, keys, values, *args, **more)

    def _store_compression_weights(
        self, name: str, kv: torch.Tensor, gate: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        self._fed[name] = kv, gate
        out: tuple[torch.Tensor, torch.Tensor, int]
        out = type(self._layer).store_compression_weights(self._layer, name, kv, gate)
        return out

    def _update_overlap_state(
        self, name: str, kv: torch.Tensor, gate: torch.Tensor, width: int
    ) -> Any:
        self._windows[name] = kv, gate, width
        return type(self._layer).update_overlap_state(self._layer, name, kv, gate, width)
