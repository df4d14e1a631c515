"""httpx, imported when it is first used: what is on disk already needs no network."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["httpx"]

if TYPE_CHECKING:
    import httpx
else:

    class _Lazy:
        def __getattr__(self, name: str) -> Any:
            return getattr(import_module("httpx"), name)

    httpx = _Lazy()
