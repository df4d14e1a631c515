"""What of a pair would be where on a machine, with an estimate of its speed."""

from typing import TYPE_CHECKING, Any

from dspark.machine import gigabytes
from dspark_cli.output.facts import print_json
from dspark_cli.output.tables import wrapped

if TYPE_CHECKING:
    from dspark.errors import MemoryFullError
    from dspark.hub.footprint import Footprint
    from dspark.hub.machine_spec import MachineSpec
    from dspark.hub.tier_plan import Part, Speed, TierPlan

TITLES = {"cpu": "on the CPU", "gpu": "on the GPU"}
PLACES = {"gpu": "the GPU", "memory": "memory", "ssd": "the SSD"}
NOT_YET = "not run on a GPU yet; what its bandwidth would allow"
WORDS = (
    "Routed experts are the parts of a layer of which each token uses only a few; the head is the "
    "small model that drafts."
)


def tell_what_if(name: str, machine: str, as_json: bool = False) -> None:
    """Of a known pair or a Hugging Face id, on the machine that `--what-if` names; fetches no
    weights. Raises InputError."""
    from dspark.hub.machine_spec import parse_machine

    spec = parse_machine(machine)
    found = _footprint(name)
    if as_json:
        print_json(_plan_object(name, found, spec))
    else:
        print("\n".join(plan_lines(name, found, spec)))


def with_plan(name: str, refusal: "MemoryFullError") -> "MemoryFullError":
    """The refusal of a known pair with routed experts, with the plan and each way out as lines
    below it; of others as it is."""
    from dspark import hub
    from dspark.errors import MemoryFullError
    from dspark.hub.memory_fit import pair_footprint, this_machine

    pair = hub.known_pair(name)
    found = None if pair is None else pair_footprint(pair)
    if pair is None or found is None or found.experts is None:
        return refusal
    needed = hub.disk_needed(pair)
    fetched = f"; {gigabytes(needed)} would be downloaded first" if needed else ""
    told = MemoryFullError(f"{refusal.message}{fetched}", "")
    # a way is a clause of the hint
    ways = [wrapped(way.removeprefix("or "), indent="  - ") for way in refusal.hint.split("; ")]
    told.add_note("\n".join([*plan_lines(name, found, this_machine()), "What you can do:", *ways]))
    return told


def plan_lines(name: str, of: "Footprint", machine: "MachineSpec") -> list[str]:
    from dspark.hub.tier_plan import tier_plans

    lines = [wrapped(f"{name} on a machine with {_machine_text(machine)}:")]
    for plan in tier_plans(of, machine):
        title = TITLES[plan.device] + ("" if plan.exists else f" ({NOT_YET})")
        lines.append(wrapped(f"{title}: {_verdict(plan)}", indent="  "))
        lines += [f"    {_part_text(part)}" for part in plan.parts]
    if of.experts is not None:
        lines.append(wrapped(WORDS, indent="  "))
    return lines


def _footprint(name: str) -> "Footprint":
    from dspark import hub
    from dspark.errors import InputError
    from dspark.hub.memory_fit import pair_footprint
    from dspark.hub.settle import check_spelling

    check_spelling(name)
    if hub.is_repo_id(name) and hub.known_pair(name) is None:
        found = hub.look_up(name).plan.footprint
    else:
        found = pair_footprint(hub.find_pair(name))
    if found is None:
        raise InputError(f"the size of {name} is not established", "Name a pair whose size is.")
    return found


def _machine_text(machine: "MachineSpec") -> str:
    def rate(name: str, value: float) -> str:
        return f"{value / 1e9:g} GB/s" + " assumed" * (name in machine.assumed)

    memory = f"{gigabytes(machine.memory)} of memory ({rate('memory', machine.memory_rate)})"
    ssd = f"an SSD ({rate('ssd', machine.ssd_rate)})"
    if not machine.gpu:
        return f"{memory} and {ssd}"
    gpu = f"a GPU of {gigabytes(machine.gpu)} ({rate('gpu', machine.gpu_rate)})"
    return f"{gpu}, PCIe ({rate('pcie', machine.pcie_rate)}), {memory} and {ssd}"


def _verdict(plan: "TierPlan") -> str:
    if plan.speed is None:
        return "does not fit"
    return f"an estimate of {_speed_text(plan.speed)} tokens a second, before any drafts"


def _speed_text(speed: "Speed") -> str:
    return f"{_rounded(speed.low)} to {_rounded(speed.high)}"


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _part_text(part: "Part") -> str:
    return f"{gigabytes(part.num_bytes):>9}  {part.name}, in {PLACES[part.where]}".replace(
        "in the", "on the"
    )


def _plan_object(name: str, of: "Footprint", machine: "MachineSpec") -> dict[str, Any]:
    from dataclasses import asdict

    from dspark.hub.tier_plan import tier_plans

    plans = [asdict(plan) for plan in tier_plans(of, machine)]
    return {"name": name, "estimate": True, "machine": asdict(machine), "plans": plans}
