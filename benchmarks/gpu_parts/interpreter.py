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
    _patch_operands(replace)


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


def _patch_operands(replace: Callable[[Any, str, Any], None]) -> None:
    """Operands of one type and shape are what they become, and a number beside a block is made of
    its shape at once; the interpreter finds that out anew for every operation."""
    from triton.language import semantic
    from triton.runtime import interpreter

    core, TritonSemantic = interpreter.tl.core, semantic.TritonSemantic
    checked, broadcast = (
        TritonSemantic.binary_op_type_checking_impl,
        TritonSemantic.broadcast_impl_value,
    )
    lasting = {"int1", "int32", "int64", "fp32"}  # as operands of any operation
    limits = {"int32": 2**31, "int64": 2**63}

    def fits(number: Any, name: str) -> bool:
        """Whether it becomes a number of this type, without a word."""
        if type(number) is int and name in limits:
            return -limits[name] <= number < limits[name]
        return type(number) in (int, float) and name == "fp32"

    def filled(semantic: Any, like: Any, number: Any) -> Any:
        numpy_type = interpreter._get_np_dtype(like.dtype)
        shape = [size.value for size in like.shape]
        data = np.full(shape or 1, number, numpy_type)
        return semantic.make_tensor(interpreter.TensorHandle(data, like.dtype), like.type)

    def check(self: Any, lhs: Any, rhs: Any, *options: Any, **named: Any) -> Any:
        is_tensor, other_is_tensor = isinstance(lhs, core.tensor), isinstance(rhs, core.tensor)
        if is_tensor and other_is_tensor:
            if lhs.dtype.name == rhs.dtype.name and lhs.dtype.name in lasting:
                return spread(self, lhs, rhs)
        elif is_tensor and fits(rhs, lhs.dtype.name):
            return lhs, filled(self, lhs, rhs)
        elif other_is_tensor and fits(lhs, rhs.dtype.name):
            return filled(self, rhs, lhs), rhs
        return checked(self, lhs, rhs, *options, **named)

    def spread(self: Any, lhs: Any, rhs: Any) -> Any:
        return (lhs, rhs) if lhs.shape is rhs.shape else broadcast(self, lhs, rhs)

    replace(TritonSemantic, "binary_op_type_checking_impl", check)
    replace(TritonSemantic, "broadcast_impl_value", spread)


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
