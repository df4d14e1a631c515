"""The schedule of commands whose screen shows drafts: the chat and the race."""

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dspark.config import EngineConfig


def showing_drafts(name: str | None, engine: "EngineConfig") -> "EngineConfig":
    """With the schedule that the pair's entry in the catalogue has for such screens."""
    from dspark import hub
    from dspark.config import ScheduleConfig

    pair = hub.known_pair(name) if name else None
    if pair is None or pair.shown_schedule is None:
        return engine
    return replace(engine, schedule=ScheduleConfig(pair.shown_schedule))
