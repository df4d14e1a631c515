"""The cache that the fit check states for DeepSeek-V4 is the one that a request allocates."""

from pathlib import Path

import pytest
import torch

from benchmarks.deepseek_v4_cpu import CONFIG as PUBLISHED
from dspark.checkpoints.deepseek_v4_cache_layout import (
    request_values,
    row_values,
    token_values,
)
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.hub.catalog.find import PAIRS
from dspark.hub.footprint import of_folders, of_listing, of_pair
from dspark.hub.memory_needed import Room, cache_bytes, least_memory, memory_needed
from dspark.models.deepseek_v4.pass_memory import PassMemory
from dspark.targets.deepseek_v4_native import load_deepseek_v4
from dspark_kernels.cpu.int8_rows import Int8Rows
from tests.deepseek_v4_toy import CONFIG, write

ROOM = Room("cpu", 2**40, 4)
# of V4-Flash: layers without compression, then by 4 and by 128 in turns
RATIOS = [0, 0, *[4, 128] * 20, 4]
FLASH = PUBLISHED | {"num_hidden_layers": 43, "compress_ratios": RATIOS, "n_routed_experts": 256}
# of V4-Pro: by 128, then by 128 and by 4 in turns
PRO = FLASH | {
    **{"hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128},
    **{"q_lora_rank": 1536, "o_groups": 16, "moe_intermediate_size": 3072},
    **{"n_routed_experts": 384, "index_topk": 1024, "compress_ratios": [128, *[128, 4] * 30]},
}


@pytest.mark.parametrize("length", [20, 300, 600])
def test_what_is_stated_is_allocated(tmp_path: Path, length: int) -> None:
    write(tmp_path)
    stated = cache_bytes(of_folders(tmp_path, None), ROOM, length)
    assert stated == cache_bytes(of_listing(CONFIG, 10**7, is_whole_v4=True), ROOM, length)
    target = load_deepseek_v4(tmp_path, tap_layers=())
    slot = target.open()
    with torch.inference_mode():
        target.prefill(slot, torch.zeros(length, dtype=torch.int64))
    pages = sum(half.nbytes for half in target.caches.halves())
    assert stated == pages + target.caches.rings(slot).memory.nbytes
    assert target.held_bytes([slot]) <= stated


def test_a_row_of_a_pass_takes_what_is_stated() -> None:
    """But for what does not grow with rows, and a few words of a row."""
    for raw in (CONFIG, FLASH):
        config = DeepseekV4TargetConfig.from_json(raw)
        sizes = []
        for num_rows in (2, 4):
            tensors = [each for each in vars(PassMemory(config, num_rows, 0)).values()]
            found = [each for each in tensors if isinstance(each, torch.Tensor)]
            found += [row.data for row in tensors if isinstance(row, Int8Rows)]
            found += [each for row in tensors if isinstance(row, dict) for each in row.values()]
            sizes.append(sum(each.nbytes for each in found))
        assert 4 * row_values(config) == pytest.approx((sizes[1] - sizes[0]) / 2, rel=0.15)
    assert 4 * row_values(config) == pytest.approx((sizes[1] - sizes[0]) / 2, rel=0.01)


def test_a_card_has_what_is_always_read_and_the_host_the_experts() -> None:
    """Of V4-Flash 147 GB are routed experts, 10 of 20 others the head's; without kernels nothing
    stays as it is stored on an old card."""
    footprint = of_pair(PAIRS["deepseek-v4-flash"])
    assert footprint is not None and footprint.experts is not None
    experts = footprint.experts.total_bytes
    for packed in (False, True):
        card = Room("cuda", 32 * 10**9, 2, packed, keeps_codes=True)
        assert memory_needed(footprint, card) - least_memory(footprint, card) == experts
        assert 17e9 < least_memory(footprint, card) < 24e9
    without = Room("cuda", 32 * 10**9, 2)
    assert least_memory(footprint, without) == memory_needed(footprint, without) > 5e11


def test_the_catalogue_tells_the_same_of_flash_as_its_config() -> None:
    """Entries of 512 in 21 layers by 4 and 20 by 128, keys of the indexer of 128; the two halves of
    a page are of one size. Rings: 190 keys, 71 raw rows of each kind, 191 of layers by 128."""
    config = DeepseekV4TargetConfig.from_json(FLASH)
    exact = 21 * (512 + 128) / 4 + 20 * 512 / 128
    assert exact <= token_values(config) <= 1.03 * exact
    raw = 21 * 71 * 4 * (512 + 128) + 20 * 191 * 2 * 512
    assert request_values(config) == 43 * 191 * 512 + raw
    assert_catalogued("deepseek-v4-flash", config)


def test_the_catalogue_tells_the_same_of_pro_as_its_config() -> None:
    """30 layers by 4, 31 by 128."""
    config = DeepseekV4TargetConfig.from_json(PRO)
    exact = 30 * (512 + 128) / 4 + 31 * 512 / 128
    assert exact <= token_values(config) <= 1.03 * exact
    assert request_values(config) == 61 * 191 * 512 + 30 * 71 * 4 * 640 + 31 * 191 * 2 * 512
    for name in ("deepseek-v4-pro", "deepseek-v4-pro-preview"):
        assert_catalogued(name, config)


def assert_catalogued(name: str, config: DeepseekV4TargetConfig) -> None:
    footprint = of_pair(PAIRS[name])
    assert footprint is not None
    assert footprint.cache == token_values(config)
    assert footprint.rings == request_values(config)
    assert footprint.row == row_values(config)
