"""A family's name means its best pair that fits this machine, and says why."""

from dataclasses import dataclass

from dspark.errors import MemoryFullError
from dspark.hub import registry
from dspark.hub.fit import Room, check_memory, gigabytes, rooms, weights_needed


@dataclass(frozen=True, slots=True)
class Choice:
    """The name of a pair, and why it was chosen; no reason where the user named it himself."""

    name: str
    reason: str = ""


def choose_pair(name: str) -> Choice:
    """Raises MemoryFullError for a family of which nothing fits."""
    if name not in registry.FAMILIES:
        return Choice(name)
    family = [registry.PAIRS[each] for each in registry.FAMILIES[name]]
    found = rooms()
    for room, value_bytes, remark in _trials(found):
        for pair in family:
            needed = weights_needed(pair, value_bytes, is_packed=room.runs_packed)
            if needed is not None and needed <= room.usable:
                what = f"{gigabytes(needed)} of {gigabytes(room.total)} on {room.device}{remark}"
                return Choice(pair.name, f"{name} is {pair.name} here: it takes {what}")
    check_memory(family[-1])
    raise MemoryFullError(f"no pair of the family {name} fits", "See dspark list.")


def _trials(found: list[Room]) -> list[tuple[Room, int, str]]:
    """The default device and number format first; then two bytes a number, wherever they fit."""
    default = found[0]
    return [(default, default.value_bytes, "")] + [
        (room, 2, f", with --device {room.device} --dtype bfloat16") for room in found
    ]
