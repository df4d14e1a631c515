"""A card that Triton compiles for and that runs nothing, over tensors on the device `meta`.

The engine calls its kernels as on a real card, so Triton compiles what really runs there: integers
that are 1, sizes that no power of two divides, arguments that are absent. What would stop the host,
or read its memory, while a graph is captured raises.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from dspark_kernels import aot, backend
from dspark_kernels.aot import SHARED_LIMITS, Usage
from dspark_kernels.builds import WARP_SIZE, all_builds
from dspark_kernels.persistent_layer import CardLimits

MULTIPROCESSORS = 132
ELEMENTS = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64",
    torch.int32: "i32", torch.bool: "i1", torch.int8: "i8", torch.uint8: "u8",
    torch.float8_e4m3fn: "fp8e4nv",
}  # fmt: skip
# operations on the host alone: views, and memory that the capture's pool gives
FREE = frozenset({
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like",
    "empty_strided", "expand", "lift_fresh", "new_empty", "permute", "reshape", "select", "slice",
    "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze",
    "view",
})  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A kernel by the file it is in, the type of its first pointer, and formats given as words."""

    kernel: str
    element: str
    formats: tuple[str, ...]


class Address:
    """A tensor as a kernel receives it; `meta` gives every tensor the address 0."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self._address = tensor.storage_offset() * tensor.element_size()

    def data_ptr(self) -> int:
        return self._address


@dataclass
class PretendedCard:
    """Use as `with card.active():`, once in a process: Triton keeps what it compiled."""

    capability: int
    launches: list[Launch] = field(default_factory=list)
    compiled: dict[int, tuple[str, Any]] = field(default_factory=dict)

    @contextmanager
    def active(self) -> Iterator[None]:
        driver.set_active(self._driver())
        run = JITFunction.run
        card = self

        def launched(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            given = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
            card.launches.append(launch_of(self, given))
            kernel = run(
                self,
                *map(addressed, args),
                grid=grid,
                warmup=warmup,
                **{name: addressed(value) for name, value in kwargs.items()},
            )
            card.compiled[id(kernel)] = (named(self), kernel)
            return kernel

        chosen = backend.Backend("triton", "pretended")
        native_fp8 = self.capability >= 89
        limits = CardLimits(MULTIPROCESSORS, SHARED_LIMITS[self.capability])
        with (
            patch.object(JITFunction, "run", launched),
            patch("dspark_kernels.dequantized_linear._converts_fp8", lambda _: native_fp8),
            replaced("choose_backend", lambda device: chosen),
            replaced("card_capability", lambda device: self.capability),
            replaced("free_memory", lambda device: 60 << 30),
            replaced("card_limits", lambda device: limits),
        ):
            yield

    def _driver(self) -> Any:
        capability = self.capability
        properties = {
            "max_shared_mem": SHARED_LIMITS[capability], "multiprocessor_count": MULTIPROCESSORS,
            "warpSize": WARP_SIZE, "max_num_regs": 65536, "sm_clock_rate": 1, "mem_clock_rate": 1,
            "mem_bus_width": 1,
        }  # fmt: skip
        return SimpleNamespace(
            utils=SimpleNamespace(
                get_device_properties=lambda device: properties,
                load_binary=lambda name, *_: (1, name, 0, 0, 1024),
            ),
            launcher_cls=lambda source, metadata: lambda *_: None,
            get_current_target=lambda: GPUTarget("cuda", capability, WARP_SIZE),
            get_current_device=lambda: 0,
            set_current_device=lambda device: None,
            get_current_stream=lambda device=0: 0,
            get_device_capability=lambda device=0: divmod(capability, 10),
            is_active=lambda: True,
            get_active_torch_device=lambda: torch.device("meta"),
        )

    def waiting(self) -> dict[str, bool]:
        """Of every kernel that is launched to start early: whether all its variants wait."""
        found: dict[str, bool] = {}
        for name, kernel in self.compiled.values():
            if kernel.metadata.launch_pdl:
                waits = "griddepcontrol.wait" in kernel.asm["ptx"]
                found[name] = found.get(name, True) and waits
        return found

    def usages(self) -> list[Usage]:
        """Of every variant that was compiled."""
        return [
            Usage(
                name,
                self.capability,
                kernel.metadata.num_warps * WARP_SIZE,
                *aot._resources(kernel.asm["cubin"]),
                kernel.metadata.shared,
            )
            for name, kernel in self.compiled.values()
        ]


def launch_of(kernel: Any, given: dict[str, Any]) -> Launch:
    pointers = [given[n] for n in kernel.arg_names if isinstance(given.get(n), torch.Tensor)]
    formats = tuple(given[n] for n in kernel.arg_names if isinstance(given.get(n), str))
    return Launch(named(kernel), ELEMENTS[pointers[0].dtype], formats)


def listed_launches() -> set[Launch]:
    """Those that are compiled ahead of time."""
    found = set()
    for build in all_builds():
        types = [build.signature.get(name, "") for name in build.kernel.arg_names]
        formats = [build.constexprs.get(name) for name in build.kernel.arg_names]
        pointers = [name.removeprefix("*") for name in types if name.startswith("*")]
        words = tuple(each for each in formats if isinstance(each, str))
        found.add(Launch(named(build.kernel), pointers[0], words))
    return found


def named(kernel: Any) -> str:
    return f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}"


def addressed(value: Any) -> Any:
    return Address(value) if isinstance(value, torch.Tensor) else value


@contextmanager
def replaced(name: str, value: Callable[..., Any]) -> Iterator[None]:
    """In every module of ours that imported it by name."""
    modules = [module for key, module in sys.modules.items() if key.startswith("dspark")]
    places = [module for module in modules if name in vars(module)]
    saved = [vars(module)[name] for module in places]
    for module in places:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, old in zip(places, saved, strict=True):
            setattr(module, name, old)


class Capture(TorchDispatchMode):
    """Counts what torch itself launches, and refuses what a capture forbids or must not contain.

    A number that is read on the host raises by itself, as `meta` has none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        with self:  # in inference mode operations arrive before they are taken apart
            parts = function.decompose(*args, **(kwargs or {}))
        if parts is not NotImplemented:
            return parts
        name = function.overloadpacket.__name__
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        # a number in a tensor without dimensions is an argument of the launch
        hosts = [each for each in tensors if each.device.type == "cpu" and each.dim()]
        if hosts:
            raise AssertionError(f"{name} reads the host's memory in a captured half")
        result = function(*args, **(kwargs or {}))
        if name not in FREE and any(
            t.device.type == "meta" for t in tree_leaves(result) if isinstance(t, torch.Tensor)
        ):
            self.operations[name] += 1
        return result


@contextmanager
def capturing() -> Iterator[Capture]:
    with patch.object(torch, "tensor", refuse_numbers), Capture() as capture:
        yield capture


def refuse_numbers(*args: Any, **kwargs: Any) -> torch.Tensor:
    raise AssertionError("torch.tensor copies from the host in a captured half")
