"""Where the weights of a model's layers are stored until they run.

The weights of a model that does not fit on its device come over the bus, layer by layer. The bus is
some fifty times slower than the device's memory, so overlapping copies with work would gain
nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch

from dspark.models.decoder import FusedLayer

Build = Callable[[], FusedLayer]  # reads the weights of one layer onto the device


class Placement(Protocol):
    """`prepacks`: the layers stay in one place, so that a CPU may keep them in its own form;
    `rereads`: a layer is built more than once, so its tensors must stay."""

    prepacks: bool
    rereads: bool

    def place(self, builds: Sequence[Build]) -> Iterable[FusedLayer]:
        """Layers in their order; whenever they are gone through, each is on the device as it
        comes."""
        ...


class OnDevice:
    """All layers stay where they run."""

    prepacks, rereads = True, False

    def place(self, builds: Sequence[Build]) -> Iterable[FusedLayer]:
        return tuple(build() for build in builds)


class InHostMemory:
    """Layers wait in the host's memory, page-locked for a CUDA device, and are copied whenever
    they run: at most one layer of them is on the device."""

    prepacks, rereads = False, False

    def place(self, builds: Sequence[Build]) -> Iterable[FusedLayer]:
        return _HostLayers(builds)


class OnDemand:
    """Layers are read from their files whenever they run: neither memory has to hold the model."""

    prepacks, rereads = False, True

    def place(self, builds: Sequence[Build]) -> Iterable[FusedLayer]:
        return _BuiltLayers(builds)


ON_DEVICE = OnDevice()


class _HostLayers:
    def __init__(self, builds: Sequence[Build]) -> None:
        self._waiting: list[FusedLayer] = []
        for build in builds:
            layer = build()
            self._device = layer.input_norm.device
            self._waiting.append(layer.moved(_to_host))

    def __iter__(self) -> Iterator[FusedLayer]:
        for layer in self._waiting:
            yield layer.moved(self._to_device)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, non_blocking=True, copy=True)


class _BuiltLayers:
    def __init__(self, builds: Sequence[Build]) -> None:
        self._builds = builds

    def __iter__(self) -> Iterator[FusedLayer]:
        return (build() for build in self._builds)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)
