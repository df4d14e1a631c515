"""Sizes of gpt-oss and Qwen3-MoE before a download, against those of their published indices."""

from typing import Any

import pytest

from dspark.checkpoints.moe_config import MoeConfig
from dspark.checkpoints.moe_target import wanted_bytes
from dspark.hub.footprint import of_listing
from dspark.hub.machine_spec import parse_machine
from dspark.hub.memory_needed import Room, least_memory, memory_needed, weight_bytes
from dspark.hub.tier_plan import tier_plans
from tests.hub.moe_configs import GPT_OSS_20B, GPT_OSS_120B, QWEN3_30B, TOTAL_BYTES

CPU, CARD = Room("cpu", 64 * 10**9, 4), Room("cuda", 24 * 10**9, 2, keeps_quantized=True)


@pytest.mark.parametrize("config", [GPT_OSS_20B, GPT_OSS_120B, QWEN3_30B], ids=list(TOTAL_BYTES))
def test_the_reader_expects_as_many_bytes_as_are_published(config: dict[str, Any]) -> None:
    name = f"{config['model_type']}-{config['num_hidden_layers']}"
    assert wanted_bytes(MoeConfig.from_json(config)) == TOTAL_BYTES[name]


def test_a_cpu_holds_the_files_and_experts_may_stay_there() -> None:
    of = of_listing(GPT_OSS_20B, TOTAL_BYTES["gpt_oss-24"], is_whole_v4=False)
    assert weight_bytes(of, CPU) == TOTAL_BYTES["gpt_oss-24"]
    assert memory_needed(of, CPU) < 18 * 10**9
    assert least_memory(of, CPU) < 8 * 10**9  # all experts in the files
    assert 40 * 10**9 < weight_bytes(of, CARD) < 44 * 10**9  # 20.9 G numbers in bfloat16


def test_plans_of_other_machines() -> None:
    of = of_listing(GPT_OSS_120B, TOTAL_BYTES["gpt_oss-36"], is_whole_v4=False)
    on_cpu, _ = tier_plans(of, parse_machine("gpu=24@1000,ram=128@60"))
    assert on_cpu.held("ssd") == 0 and on_cpu.speed is not None
    assert 3 < on_cpu.speed.low < on_cpu.speed.high < 40
    small, _ = tier_plans(of, parse_machine("gpu=24@1000,ram=32@60"))
    assert small.held("ssd") > 30 * 10**9 and small.speed is not None
    assert small.speed.high < on_cpu.speed.high
