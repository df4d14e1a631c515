"""A machine that is described, not present: its memories and their speeds, for `--what-if`."""

import re
from dataclasses import dataclass, replace

from dspark.errors import InputError
from dspark.hub.footprint import FLOAT
from dspark.hub.memory_needed import Room

GB = 10**9
HALF = 2
# bytes a second, where nothing else is said
GPU_RATE, MEMORY_RATE, SSD_RATE, PCIE_RATE = 900 * GB, 65 * GB, 3 * GB, 25 * GB
CARDS = {  # GB, and GB a second as the maker states them
    "3060": (12, 360),
    "3090": (24, 936),
    "4060ti": (16, 288),
    "4080": (16, 717),
    "4090": (24, 1008),
    "5060ti": (16, 448),
    "5070ti": (16, 896),
    "5080": (16, 960),
    "5090": (32, 1792),
    "a100": (80, 2039),
    "a6000": (48, 768),
    "h100": (80, 3350),
    "h200": (141, 4800),
    "l40s": (48, 864),
    "pro6000": (96, 1792),
}
FORM = "gpu=24,ram=256"
HINT = (
    f"Say it like {FORM}: ram= and gpu= in GB, gpu= also a card like 4090, ssd= and pcie= in GB "
    "a second; ram=256@110 gives the memory's GB a second, gpu=24@1008 the card's."
)
PART = re.compile(r"([a-z]+)=([a-z0-9. -]+?)(?: ?gb)?(?:@([0-9.]+))?")


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """Bytes, and bytes a second. No GPU: `gpu` is 0. `assumed` names what was not told."""

    memory: int
    memory_rate: float = MEMORY_RATE
    gpu: int = 0
    gpu_rate: float = GPU_RATE
    ssd_rate: float = SSD_RATE
    pcie_rate: float = PCIE_RATE
    assumed: tuple[str, ...] = ("memory", "gpu", "ssd", "pcie")

    def rooms(self) -> list[Room]:
        """As memory_fit.rooms."""
        rooms = [Room("cpu", self.memory, FLOAT, keeps_codes=True)]
        if self.gpu:
            rooms.insert(0, Room("cuda", self.gpu, HALF, keeps_quantized=True, keeps_codes=True))
        return rooms


def parse_machine(text: str) -> MachineSpec:
    """Of `gpu=24,ram=256`. Raises InputError."""
    given: dict[str, tuple[str, float | None]] = {}
    for part in filter(None, (each.strip().lower() for each in text.split(","))):
        found = PART.fullmatch(part)
        if found is None or found[1] not in ("gpu", "ram", "ssd", "pcie") or found[1] in given:
            raise InputError(f"--what-if cannot read {part!r}", HINT)
        given[found[1]] = found[2], _number(found[3], part) if found[3] else None
    if "ram" not in given:
        raise InputError("--what-if needs the machine's memory, ram=", HINT)
    memory, rate = given["ram"]
    spec = MachineSpec(int(_number(memory, f"ram={memory}") * GB))
    if rate is not None:
        spec = _told(spec, "memory", memory_rate=rate * GB)
    if "gpu" in given:
        size, speed = _card(*given["gpu"])
        spec = replace(spec, gpu=int(size * GB))
        if speed is not None:
            spec = _told(spec, "gpu", gpu_rate=speed * GB)
    for name, key in (("ssd", "ssd_rate"), ("pcie", "pcie_rate")):
        if name in given:
            spec = _told(spec, name, **{key: _number(given[name][0], f"{name}=") * GB})
    return spec


def _told(spec: MachineSpec, name: str, **values: float) -> MachineSpec:
    assumed = tuple(each for each in spec.assumed if each != name)
    return replace(spec, assumed=assumed, **values)  # type: ignore[arg-type]


def _card(size: str, rate: float | None) -> tuple[float, float | None]:
    """GB and GB a second, of a number or a card's name."""
    name = re.sub(r"[ -]|rtx|geforce|nvidia", "", size)
    if name in CARDS:
        held, own = CARDS[name]
        return held, rate or own
    if not re.fullmatch(r"[0-9.]+", name):
        raise InputError(f"--what-if knows no card {size!r}", f"Known: {', '.join(CARDS)}; or GB.")
    return _number(name, f"gpu={size}"), rate


def _number(text: str, part: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise InputError(f"--what-if needs a number above 0 in {part!r}", HINT)
    return number
