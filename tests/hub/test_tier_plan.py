"""What would be where on another machine, against a table that was worked out by hand from the same
bandwidths (tokens a second of DeepSeek-V4-Flash, routing at random to the best static set)."""

from dataclasses import replace

import pytest

from dspark.errors import InputError
from dspark.hub.catalog.find import PAIRS
from dspark.hub.expert_sizes import ExpertSizes, expert_sizes
from dspark.hub.footprint import Footprint, of_listing, of_pair
from dspark.hub.machine_spec import MachineSpec, parse_machine
from dspark.hub.tier_plan import gpu_seconds, popular_share, tier_plans
from tests.deepseek_v4_toy import CONFIG

FLASH = ExpertSizes(layers=43, per_layer=256, per_token=6, num_bytes=13_369_344)
ALWAYS = 7_790_000_000


def flash() -> Footprint:
    found = of_pair(PAIRS["deepseek-v4-flash"])
    assert found is not None
    return found


def test_the_parts_of_flash_are_those_of_its_index() -> None:
    """147.17 GB of experts, 3.45 GB of them a token; 7.8 GB that every token reads."""
    assert flash().experts == FLASH
    assert FLASH.total_bytes == 11_008 * 13_369_344
    assert round(FLASH.token_bytes / 1e9, 2) == 3.45
    (plan,) = tier_plans(flash(), parse_machine("ram=256"))
    assert plan.parts[0].num_bytes == pytest.approx(ALWAYS, rel=0.01)
    weights = sum(p.num_bytes for p in plan.parts if not p.name.startswith("caches"))
    embedding = 129_280 * 4096 * 2
    assert weights + embedding == flash().stored_bytes
    shown = of_listing(
        CONFIG | {"n_routed_experts": 6}, 10**7, is_whole_v4=True
    )  # a config tells the same as the catalogue
    assert shown.experts == ExpertSizes(4, 6, 2, 3 * 64 * 32 * 17 // 32)


# slots; share of choices at random and at best; GB/s of misses; tokens a second
TABLE = [
    (960, 0.11, 0.55, 25, (7, 14)),
    (960, 0.11, 0.55, 50, (14, 23)),
    (960, 0.11, 0.55, 65, (17, 28)),
    (960, 0.11, 0.55, 250, (41, 55)),
    (1792, 0.16, 0.63, 110, (30, 54)),
    (900, 0.28, 0.73, 65, (20, 37)),
]


@pytest.mark.parametrize(("card", "uniform", "best", "misses", "expected"), TABLE)
def test_the_speed_is_that_of_the_table(card, uniform, best, misses, expected) -> None:
    machine = MachineSpec(256 * 10**9, misses * 1e9, 24 * 10**9, card * 1e9, pcie_rate=1e9)
    found = [
        1 / gpu_seconds(ALWAYS, FLASH, machine, share, 1 - share, 0.75) for share in (uniform, best)
    ]
    assert [round(each) for each in found] == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(("rate", "expected"), [(65, 5.8), (250, 22)])
def test_all_in_memory_a_cpu_reads_as_fast_as_its_memory(rate, expected) -> None:
    (plan,) = tier_plans(flash(), parse_machine(f"ram=192@{rate}"))
    assert plan.held("ssd") == 0 and plan.exists
    assert plan.speed is not None
    assert plan.speed.high == pytest.approx(expected, rel=0.02)
    assert 0.4 * expected < plan.speed.low < expected


def test_memory_that_is_short_leaves_experts_on_the_ssd() -> None:
    plans = [tier_plans(flash(), parse_machine(f"ram={ram},ssd=6"))[0] for ram in (192, 128, 96)]
    assert [round(plan.held("ssd") / 1e9) for plan in plans] == [0, 44, 76]
    speeds = [plan.speed.low for plan in plans if plan.speed]
    assert speeds == sorted(speeds, reverse=True) and len(speeds) == 3
    (plan,) = tier_plans(flash(), parse_machine("ram=16"))
    assert plan.speed is None


def test_a_gpu_is_a_plan_that_says_it_does_not_exist_yet() -> None:
    cpu, gpu = tier_plans(flash(), parse_machine("gpu=24@960,ram=256@65"))
    assert cpu.exists and not gpu.exists
    assert gpu.speed is not None and gpu.speed.low < 17 and 24 < gpu.speed.high < 30
    held = gpu.held("gpu") + gpu.held("memory")
    head = next(part.num_bytes for part in gpu.parts if part.name == "head")
    assert held == pytest.approx(ALWAYS + 1.5e9 + FLASH.total_bytes + head, rel=0.01)


def test_a_dense_model_is_its_weights() -> None:
    pair = of_pair(PAIRS["qwen3-4b"])
    assert pair is not None and pair.experts is None
    cpu, gpu = tier_plans(pair, parse_machine("gpu=3090,ram=32"))
    assert {part.where for part in gpu.parts} == {"gpu"}
    assert cpu.speed and gpu.speed and gpu.speed.low > cpu.speed.high
    assert tier_plans(pair, parse_machine("ram=16"))[0].speed is None


def test_popularity_is_as_measured_and_rises() -> None:
    assert popular_share(16 / 256) == pytest.approx(0.465)
    assert popular_share(64 / 256) == pytest.approx(0.712)
    shares = [popular_share(n / 100) for n in range(101)]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1


def test_a_machine_is_read() -> None:
    spec = parse_machine(" GPU=RTX 4090 , ram=256@110,ssd=7")
    assert (spec.gpu, spec.gpu_rate, spec.memory) == (24 * 10**9, 1008e9, 256 * 10**9)
    assert (spec.memory_rate, spec.ssd_rate, spec.assumed) == (110e9, 7e9, ("pcie",))
    assert [room.device for room in spec.rooms()] == ["cuda", "cpu"]
    assert parse_machine("gpu=24@1000,ram=1").gpu_rate == 1000e9
    assert parse_machine("gpu=24gb@960,ram=16 GB") == parse_machine("gpu=24@960,ram=16")
    assert replace(parse_machine("ram=64"), assumed=()) == MachineSpec(64 * 10**9, assumed=())


@pytest.mark.parametrize(
    "text", ["", "gpu=24", "ram=0", "ram=x", "ram=64,ram=32", "cpu=3", "ram", "gpu=voodoo,ram=8"]
)
def test_what_is_no_machine_is_refused(text) -> None:
    with pytest.raises(InputError, match="--what-if"):
        parse_machine(text)


def test_experts_of_other_families() -> None:
    gpt_oss = {
        "model_type": "gpt_oss",
        "num_hidden_layers": 24,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    assert expert_sizes(gpt_oss) == ExpertSizes(24, 32, 4, 3 * 2880 * 2880 * 17 // 32)
    assert expert_sizes({"hidden_size": 64, "num_hidden_layers": 2}) is None
