"""What of a pair would be where on a machine, and an estimate of its speed, before it is fetched.

A token reads what every token reads, and its routed experts from wherever they are. How many
choices the N most popular of 256 experts serve was measured on DeepSeek-V4-Flash over 31,841
choices (colibri issue 864), beyond 64 continued by eye. All else is arithmetic: bytes over
bandwidths; nothing here was measured on the machine that is named.
"""

from bisect import bisect_right
from dataclasses import dataclass

from dspark.hub.expert_sizes import ExpertSizes
from dspark.hub.footprint import Footprint
from dspark.hub.machine_spec import MachineSpec
from dspark.hub.memory_needed import Room, cache_bytes, pass_bytes, program_bytes, weight_bytes

# share of a layer's experts, share of choices that they serve when they are the most popular
POPULARITY = (
    (0.0, 0.0),
    (8 / 256, 0.356),
    (16 / 256, 0.465),
    (32 / 256, 0.585),
    (64 / 256, 0.712),
    (128 / 256, 0.86),
    (160 / 256, 0.91),
    (1.0, 1.0),
)
LOW_EFFICIENCY, HIGH_EFFICIENCY = 0.55, 0.75  # of a GPU's bandwidth, reached by small matrices
CPU_EFFICIENCY = 0.6  # of the memory's, at least
LAYER_SECONDS = 25e-6  # on a GPU, of launches
PROMISED = 0.8  # of the lower figure: a measured machine did that
GPU_REST = 1_500_000_000  # rings, workspace and graphs
SYSTEM_BYTES = 4_000_000_000  # of the host's memory, for everything else


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a pair's bytes in one memory: "gpu", "memory" or "ssd"."""

    name: str
    num_bytes: int
    where: str


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second of plain decoding: an estimate, from routing at random to the most popular
    experts nearby."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class TierPlan:
    """`speed` None: it does not run there. `exists`: whether dspark has the code for it."""

    device: str
    parts: tuple[Part, ...]
    speed: Speed | None
    exists: bool = True

    def held(self, where: str) -> int:
        return sum(part.num_bytes for part in self.parts if part.where == where)


@dataclass(frozen=True, slots=True)
class _Bytes:
    """`always`: what every token reads, of which the embedding's rows are nothing."""

    always: int
    embedding: int
    head: int
    rest: int  # caches, a pass, the program


def tier_plans(of: Footprint, machine: MachineSpec) -> list[TierPlan]:
    """On the CPU, and where there is a GPU, on that."""
    rooms = {room.device: room for room in machine.rooms()}
    plans = [_on_cpu(of, machine, rooms["cpu"])]
    if "cuda" in rooms:
        plans.append(_on_gpu(of, machine, rooms["cuda"]))
    return plans


def popular_share(share_of_experts: float) -> float:
    """Of all choices, those that the most popular experts serve."""
    at = bisect_right([x for x, _ in POPULARITY], share_of_experts) - 1
    if at >= len(POPULARITY) - 1:
        return 1.0
    (low, served), (high, then) = POPULARITY[at], POPULARITY[at + 1]
    return served + (then - served) * (share_of_experts - low) / (high - low)


def _on_cpu(of: Footprint, machine: MachineSpec, room: Room) -> TierPlan:
    each, experts = _bytes(of, room), of.experts
    dense = each.always + each.head + each.embedding + each.rest
    left = machine.memory - SYSTEM_BYTES - dense
    if experts is None:
        fits = left >= 0
        parts = [Part("weights", each.always + each.embedding, "memory")]
        speed = _range(
            *((each.always / (machine.memory_rate * rate)) for rate in (CPU_EFFICIENCY, 1))
        )
        return TierPlan("cpu", (*parts, *_rest(each, "memory")), speed if fits else None)
    near = max(0, min(experts.count, left // experts.num_bytes))
    far = experts.count - near
    parts = [Part("read by every token", each.always, "memory"), *_rest(each, "memory")]
    parts += _experts_in(experts, near, "memory") + _experts_in(experts, far, "ssd")
    share = near / experts.count

    def seconds(rate: float, hits: float) -> float:
        near_bytes = each.always + hits * experts.token_bytes
        far_bytes = (1 - hits) * experts.token_bytes
        return near_bytes / (rate * machine.memory_rate) + far_bytes / machine.ssd_rate

    speed = _range(seconds(CPU_EFFICIENCY, share), seconds(1.0, popular_share(share)))
    return TierPlan("cpu", tuple(parts), speed if left >= 0 else None)


def _on_gpu(of: Footprint, machine: MachineSpec, room: Room) -> TierPlan:
    each, experts = _bytes(of, room), of.experts
    if experts is None:
        total = each.always + each.embedding + each.head + each.rest
        parts = (Part("weights", each.always + each.embedding, "gpu"), *_rest(each, "gpu"))
        rates = (machine.gpu_rate * rate for rate in (LOW_EFFICIENCY, HIGH_EFFICIENCY))
        speed = _range(*(each.always / rate for rate in rates))
        return TierPlan("gpu", parts, speed if total <= room.usable else None)
    slots = max(0, (room.usable - each.always - GPU_REST) // experts.num_bytes)
    slots = min(slots, experts.count)
    left = machine.memory - SYSTEM_BYTES - each.embedding - each.head
    host = max(0, min(experts.count - slots, left // experts.num_bytes))
    far = experts.count - slots - host
    parts = (
        Part("read by every token", each.always, "gpu"),
        Part("caches and workspace", GPU_REST, "gpu"),
        *_experts_in(experts, slots, "gpu"),
        *_experts_in(experts, host, "memory"),
        *_experts_in(experts, far, "ssd"),
        *([Part("head", each.head, "memory")] if each.head else []),
    )
    shares = slots / experts.count, host / experts.count
    low = gpu_seconds(each.always, experts, machine, *shares, LOW_EFFICIENCY)
    best = popular_share(shares[0])
    then = popular_share(shares[0] + shares[1]) - best
    high = gpu_seconds(each.always, experts, machine, best, then, HIGH_EFFICIENCY)
    fits = each.always + GPU_REST <= room.usable and left >= 0
    return TierPlan("gpu", parts, _range(low, high) if fits else None, exists=False)


def gpu_seconds(
    always: int,
    experts: ExpertSizes,
    machine: MachineSpec,
    on_card: float,
    in_memory: float,
    efficiency: float,
) -> float:
    """Of a token: `on_card` and `in_memory` are shares of choices; the rest comes from the SSD.
    Misses go over PCIe or to the CPU, whichever is faster."""
    card = machine.gpu_rate * efficiency
    miss = max(machine.memory_rate, machine.pcie_rate)
    read = experts.token_bytes
    elsewhere = read * in_memory / miss + read * (1 - on_card - in_memory) / machine.ssd_rate
    return always / card + max(read * on_card / card, elsewhere) + experts.layers * LAYER_SECONDS


def _range(low: float, high: float) -> Speed:
    """Of the seconds of the slower and the faster case."""
    return Speed(PROMISED / low, 1 / high)


def _bytes(of: Footprint, room: Room) -> _Bytes:
    experts = of.experts
    weights = of.stored_bytes if experts is not None else None
    weights = weight_bytes(of, room) if weights is None else weights
    embedding = of.vocab_size * of.hidden_size * 2
    routed = 0 if experts is None else experts.total_bytes
    always = max(weights - routed - of.head_bytes - embedding, 0)
    rest = cache_bytes(of, room) + pass_bytes(of, room) + program_bytes(of, room)
    return _Bytes(always, embedding, of.head_bytes, rest)


def _rest(each: _Bytes, where: str) -> list[Part]:
    parts = [Part("caches, a pass, the program", each.rest, where)]
    return parts + ([Part("head", each.head, where)] if each.head else [])


def _experts_in(experts: ExpertSizes, count: int, where: str) -> list[Part]:
    name = f"{count:,} of {experts.count:,} routed experts"
    return [Part(name, count * experts.num_bytes, where)] if count else []
