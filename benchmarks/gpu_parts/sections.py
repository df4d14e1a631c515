"""What benchmarks/gpu.py runs, the most valuable first, and what each section may take."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # which imports torch and triton
    from gpu_parts.setting import Setting

MOST_PROCESSES = 12


@dataclass(frozen=True, slots=True)
class Section:
    """`function` of a module in gpu_parts. seconds: its share of what is left when it begins.

    `is_shared` among several processes, which compile at once.
    """

    module: str
    function: str
    seconds: int
    environment: Mapping[str, str] = field(default_factory=dict)
    is_shared: bool = False

    def records(self, setting: "Setting") -> Iterator[dict[str, Any]]:
        module = import_module(f"gpu_parts.{self.module}")
        run: Callable[[Setting], Iterator[dict[str, Any]]] = getattr(module, self.function)
        return run(setting)


SECTIONS: Mapping[str, Section] = {
    "card": Section("card", "describe_card", 15),
    "gaps": Section("gaps", "time_gaps", 15),
    "kernels": Section("checks", "check_each_once", 35, is_shared=True),
    "golden": Section("golden", "check_golden", 50, is_shared=True),
    "golden-uncaptured": Section(
        "golden", "check_golden", 20, {"DSPARK_GRAPHS": "off"}, is_shared=True
    ),
    "golden-torch": Section(
        "golden", "check_golden", 15, {"DSPARK_KERNELS": "torch"}, is_shared=True
    ),
    "engine": Section("engine", "time_engine", 70),
    "tests": Section("native_tests", "run_tests", 35),
    "checks": Section("checks", "check_kernels", 75, is_shared=True),
    "rounds": Section("rounds", "time_rounds", 55),
    "persistent": Section("persistent", "time_persistent", 30),
    "sweep": Section("sweep", "sweep_tilings", 45),
    "profilers": Section("profilers", "profile_kernels", 40),
    "identity": Section("identity", "check_identity", 40),
    "skinny": Section("timings", "time_skinny", 30),
    "attention": Section("timings", "time_attention", 15),
    "others": Section("timings", "time_others", 15),
    "deepseek-v4": Section("deepseek_v4", "time_deepseek_v4", 400),
    "peers": Section("peers", "beside_peers", 100),
}
TOTAL_SECONDS = 540
# one compiles for minutes, the other takes a call of its own
UNASKED = tuple(name for name in SECTIONS if name not in ("peers", "deepseek-v4"))
FIRST_MINUTE = ("card", "gaps", "golden")
FIRST_CONTACT = (
    "card",
    "gaps",
    "kernels",
    "golden",
    "golden-uncaptured",
    "golden-torch",
    "engine",
    "tests",
)


def fair_share(name: str, names: Sequence[str], left: float) -> float:
    """Seconds for one of the remaining sections; unused time goes to the others."""
    following = names[names.index(name) :]
    return left * SECTIONS[name].seconds / sum(SECTIONS[each].seconds for each in following)
