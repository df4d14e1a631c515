"""dspark: speculative decoding with DSpark heads on your own machine.

    import dspark

    with dspark.load("demo") as session:
        print(session.generate_text("Why is the sky blue?"))

Everything below is imported when it is first used, so that `import dspark` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dspark.config import EngineConfig, RuntimeConfig, ScheduleConfig
    from dspark.engine.load_pair import load, loading
    from dspark.engine.session import Session
    from dspark.errors import DSparkError
    from dspark.events import DecodeStats, Finished, Piece, PrefillProgress, Round
    from dspark.progress import follow

__all__ = [
    "DSparkError",
    "DecodeStats",
    "EngineConfig",
    "Finished",
    "Piece",
    "PrefillProgress",
    "Round",
    "RuntimeConfig",
    "ScheduleConfig",
    "Session",
    "follow",
    "load",
    "loading",
]
_HOMES = {
    "config": ("EngineConfig", "RuntimeConfig", "ScheduleConfig"),
    "engine.load_pair": ("load", "loading"),
    "engine.session": ("Session",),
    "errors": ("DSparkError",),
    "events": ("DecodeStats", "Finished", "Piece", "PrefillProgress", "Round"),
    "progress": ("follow",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"dspark.{home}"), name)
    raise AttributeError(f"module 'dspark' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
