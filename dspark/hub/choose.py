"""A family's name means its best pair that fits this machine, and says why."""

from dataclasses import dataclass

from dspark.config import RuntimeConfig
from dspark.errors import MemoryFullError
from dspark.hub import memory_fit
from dspark.hub.catalog import find
from dspark.hub.memory_fit import check_memory, pair_memory
from dspark.machine import gigabytes


@dataclass(frozen=True, slots=True)
class Choice:
    """The name of a pair, and why it was chosen; no reason where the user named it himself."""

    name: str
    reason: str = ""


def choose_pair(name: str, runtime: RuntimeConfig | None = None) -> Choice:
    """As `runtime` says, None: in any way that fits here, the default before others.

    Raises MemoryFullError for a family of which nothing fits.
    """
    if name not in find.FAMILIES:
        return Choice(name)
    family = [find.PAIRS[each] for each in find.FAMILIES[name]]
    found = memory_fit.rooms()
    trials = (
        memory_fit.settings(found)
        if runtime is None
        else [(memory_fit.room_for(runtime, found), "")]
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
