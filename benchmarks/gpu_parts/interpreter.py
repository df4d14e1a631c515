"""Triton's interpreter (3.9) at twice the speed."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


def patch_once_a_launch(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """The interpreter patches the language anew for every function that a kernel calls.

    Once for a launch is enough, if it is for all places that the language's own functions look at.
    """
    from triton.runtime import interpreter

    patch_lang, tl = interpreter._patch_lang, interpreter.tl
    everywhere = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rewrite()(*args, **kwargs)

    replace(interpreter, "_patch_lang", lambda fn: patch_lang(everywhere))
    replace(interpreter.InterpretedFunction, "__call__", call)
