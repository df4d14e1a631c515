"""Chooses a family's best pair that fits this machine, with the reason."""

from dataclasses import dataclass

from dspark.config import RuntimeConfig
from dspark.errors import MemoryFullError
from dspark.hub import memory_fit
from dspark.hub.catalog import find
from dspark.hub.memory_fit import check_memory, pair_memory
from dspark.machine import gigabytes


@dataclass(frozen=True, slots=True)
class Choice:
    """The name of a pair, and the reason for it; empty if the user named the pair."""

    name: str
    reason: str = ""


def choose_pair(name: str, runtime: RuntimeConfig | None = None) -> Choice:
    """A pair that fits on `runtime`; None: in any way that fits here, the default first.

    Raises MemoryFullError if no pair of the family fits.
    """
    if name not in find.FAMILIES:
        return Choice(name)
    family = [find.PAIRS[each] for each in find.FAMILIES[name]]
    rooms = memory_fit.rooms()
    trials = (
        memory_fit.settings(rooms)
        if runtime is None
        else [(memory_fit.room_for(runtime, rooms), "")]
    )
    for room, options in trials:
        for pair in family:
            needed = pair_memory(pair, room)
            if needed is not None and needed <= room.usable:
                what = f"{gigabytes(needed)} of {gigabytes(room.total)} on {room.device}"
                what += f" in {room.dtype}" + (f", with {options}" if options else "")
                return Choice(pair.name, f"{name} is {pair.name} here: it takes {what}")
    check_memory(family[-1], runtime)
    raise MemoryFullError(f"no pair of the family {name} fits", "See dspark list.")
