"""Triton's interpreter (3.9) at four times the speed, with products that add in one order."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np


def patch_once_a_launch(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """The interpreter patches the language anew for every function that a kernel calls.

    Once for a launch is enough, if it is for all places that the language's own functions look at.
    And types are made once, see below.
    """
    from triton.runtime import interpreter

    patch_lang, tl = interpreter._patch_lang, interpreter.tl
    everywhere = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rewrite()(*args, **kwargs)

    replace(interpreter, "_patch_lang", lambda fn: patch_lang(everywhere))
    replace(interpreter.InterpretedFunction, "__call__", call)
    _patch_types(replace)


def _patch_types(replace: Callable[[Any, str, Any], None]) -> None:
    """Shapes and types, which the interpreter makes anew for every value, are made once each.

    Nor does it add whole numbers twice: again in 64 bits, for a check that only debugging reads.
    """
    from triton.language import semantic
    from triton.runtime import interpreter

    core = interpreter.tl.core
    by_shape: dict[tuple[int, ...], tuple[Any, Any, int, Any]] = {}
    by_name: dict[str, Any] = {}
    numpy_type = interpreter._get_np_dtype

    def made(sizes: tuple[int, ...]) -> tuple[Any, Any, int, Any]:
        """A shape as types and as values hold it, and the number of its elements likewise."""
        if sizes not in by_shape:
            numel = core.validate_block_shape(sizes)
            constants = core.tuple([core.constexpr(size) for size in sizes])
            by_shape[sizes] = core.tuple(sizes), constants, numel, core.constexpr(numel)
        return by_shape[sizes]

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([getattr(size, "value", size) for size in shape])
        self.element_ty, self.made = element_ty, made(sizes)
        self.shape, _, self.numel, _ = self.made
        self.name = f"<{sizes}, {element_ty.name}>"

    def tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        _, self.shape, _, self.numel = type.made if type.is_block() else made(())

    def get_numpy_type(type: Any) -> Any:
        scalar = type.scalar
        if scalar.name not in by_name:
            by_name[scalar.name] = numpy_type(scalar)
        return by_name[scalar.name]

    replace(core.block_type, "__init__", block_type)
    replace(core.tensor, "__init__", tensor)
    replace(interpreter, "_get_np_dtype", get_numpy_type)
    replace(semantic.TritonSemantic, "binary_op_sanitize_overflow_impl", lambda *_: None)


def patch_products(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """A tile's product whose rows have the same bits at any place in it, as a tensor core's have.

    NumPy's own, by OpenBLAS, are added in another order from the seventh row on (on AMD's Zen).
    """
    from triton.runtime import interpreter

    def create_dot(self: Any, a: Any, b: Any, total: Any, *precision: Any) -> Any:
        if 8 in (a.dtype.primitive_bitwidth, b.dtype.primitive_bitwidth):
            return by_numpy(self, a, b, total, *precision)
        x, y = (operand.data.astype(total.data.dtype) for operand in (a, b))
        out = np.einsum("...ik,...kj->...ij", x, y) + total.data
        return interpreter.TensorHandle(out, total.dtype.scalar)

    by_numpy = interpreter.InterpreterBuilder.create_dot
    replace(interpreter.InterpreterBuilder, "create_dot", create_dot)
