"""Which pair a family means on machines of several sizes, and what a machine too small is told."""

import math

import pytest

from dspark import hub
from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.checkpoints.eagle3_config import Eagle3Config
from dspark.config import RuntimeConfig
from dspark.errors import MemoryFullError
from dspark.hub import choose, memory_fit
from dspark.hub.catalog.find import ALIASES, FAMILIES, PAIRS
from dspark.hub.catalog.pairs import HubRepo
from dspark.hub.footprint import of_pair
from dspark.hub.memory_fit import pair_memory
from dspark.hub.memory_needed import Room

GB = 10**9
DEEPSPEC = ("dspark", "dflash", "eagle3")


@pytest.fixture
def machine(monkeypatch):
    def build(cpu: int, cuda: int = 0, *, keeps_quantized: bool = True) -> None:
        found = [Room("cpu", cpu * GB, 4)]
        if cuda:
            found.insert(0, Room("cuda", cuda * GB, 2, keeps_quantized))
        monkeypatch.setattr(memory_fit, "rooms", lambda: found)

    return build


@pytest.mark.parametrize(
    ("cpu", "cuda", "name"),
    [
        (16, 80, "qwen3-14b"),
        (16, 25, "qwen3-8b"),
        (16, 16, "qwen3-4b"),
        (128, 0, "qwen3-14b"),
        (64, 0, "qwen3-8b"),
        (25, 0, "qwen3-4b"),
    ],
)
def test_the_best_that_fits_the_default_device(machine, cpu, cuda, name) -> None:
    machine(cpu, cuda)
    choice = hub.choose_pair("qwen")
    assert choice.name == name
    assert ("cuda" if cuda else "cpu") in choice.reason
    assert "--dtype" not in choice.reason


def test_what_fits_in_bfloat16_alone_says_so(machine) -> None:
    machine(16)
    choice = hub.choose_pair("qwen")
    assert choice.name == "qwen3-4b"
    assert choice.reason.endswith("with --device cpu --dtype bfloat16")
    assert hub.choose_pair("qwen", RuntimeConfig(dtype="bfloat16")).name == "qwen3-4b"
    with pytest.raises(MemoryFullError, match=r"22\.\d GB \(cpu, float32\) of") as failure:
        hub.choose_pair("qwen", RuntimeConfig())
    assert failure.value.hint.startswith("It fits with --device cpu --dtype bfloat16; ")


def test_what_is_asked_for_is_what_is_checked(machine) -> None:
    machine(25)
    pair = PAIRS["qwen3-8b"]
    hub.check_memory(pair)  # in some way
    hub.check_memory(pair, RuntimeConfig(dtype="bfloat16"))
    for runtime in (RuntimeConfig(), RuntimeConfig(dtype="float32", device="cpu")):
        with pytest.raises(MemoryFullError, match=r"41\.\d GB") as failure:
            hub.check_memory(pair, runtime)
        assert failure.value.hint.startswith("It fits with --device cpu --dtype bfloat16; ")
    with pytest.raises(MemoryFullError, match="bfloat16") as failure:
        hub.check_memory(PAIRS["qwen3-14b"], RuntimeConfig(dtype="bfloat16"))
    assert "fits;" not in failure.value.hint and "--force" in failure.value.hint
    machine(25, 80)
    hub.check_memory(pair, RuntimeConfig())
    with pytest.raises(MemoryFullError) as failure:
        hub.check_memory(pair, RuntimeConfig(device="cpu"))
    assert "--device cuda" in failure.value.hint


def test_a_name_of_its_own_is_itself(machine) -> None:
    machine(1)
    assert hub.choose_pair("qwen3-14b") == choose.Choice("qwen3-14b")


@pytest.mark.parametrize("name", ["deepseek", "deepseek-v4-flash", "deepseek-v4-flash-0731"])
def test_too_small_a_machine_is_told_what_is_needed_and_the_ways_out(machine, name) -> None:
    machine(64, 141)
    with pytest.raises(MemoryFullError) as failure:
        list(hub.fetch(name))
    needs = ("168.7 GB (cuda, FP8)", "167.9 GB (cpu, as stored)", "579.5 GB (cpu, FP8 unpacked)")
    for text in (*needs, "141.0 GB (cuda)", "64.0 GB (cpu)"):
        assert text in failure.value.message
    for text in (
        "dspark serve deepseek-v4",
        "--engine vllm",
        "--server",
        "--force",
        "smaller pair",
    ):
        assert text in failure.value.hint
    assert "\n" not in failure.value.message + failure.value.hint


def test_one_gpu_that_holds_it_is_enough(machine) -> None:
    machine(64, 200)
    hub.check_memory(PAIRS["deepseek-v4-flash"])
    assert hub.choose_pair("deepseek").name == "deepseek-v4-flash"


def test_a_cpu_runs_it_as_it_is_stored(machine) -> None:
    machine(187)  # 168.3 GB without what the system needs
    hub.check_memory(PAIRS["deepseek-v4-flash"])
    machine(185)
    with pytest.raises(MemoryFullError, match="as stored"):
        hub.check_memory(PAIRS["deepseek-v4-flash"])
    half = RuntimeConfig(dtype="bfloat16")
    machine(640)  # 576 GB without what the system needs
    with pytest.raises(MemoryFullError, match="579"):
        hub.check_memory(PAIRS["deepseek-v4-flash"], half)
    machine(650)
    hub.check_memory(PAIRS["deepseek-v4-flash"], half)


def test_on_a_gpu_without_fp8_its_weights_take_three_times_as_much(machine) -> None:
    machine(64, 200, keeps_quantized=False)
    with pytest.raises(MemoryFullError, match=r"579.5 GB \(cuda|580.* GB \(cuda"):
        hub.check_memory(PAIRS["deepseek-v4-flash"])


def test_every_released_pair_tells_where_its_figures_are_from() -> None:
    for pair in PAIRS.values():
        assert {"licence", "target", "num_parameters", "target_num_bytes"} <= pair.origins.keys()
        assert pair.head is not None
        assert pair_memory(pair, Room("cpu", 0, 4))
    assert set(ALIASES.values()) <= PAIRS.keys()
    assert {name for names in FAMILIES.values() for name in names} <= PAIRS.keys()


def test_three_heads_of_each_of_deepspecs_targets() -> None:
    for target in ("qwen3-4b", "qwen3-8b", "qwen3-14b", "gemma4-12b"):
        heads = [hub.find_pair(f"{target}:{each}") for each in DEEPSPEC]
        assert heads[0] == hub.find_pair(target)
        assert len({pair.draft for pair in heads}) == 3
        assert {pair.target for pair in heads} == {heads[0].target}
        assert all(pair in hub.released_heads() for pair in heads)


@pytest.mark.parametrize("target", ["qwen3-4b", "qwen3-8b", "qwen3-14b", "gemma4-12b"])
def test_the_sizes_of_released_heads_are_those_of_their_layouts(target: str) -> None:
    pairs = {each: PAIRS[hub.find_pair(f"{target}:{each}").name] for each in DEEPSPEC}
    facts, dspark = pairs["dspark"].facts, pairs["dspark"].head
    assert facts is not None and dspark is not None
    is_gemma = facts.model_type == "gemma4_unified"
    inner, num_heads = {2560: (9728, 32), 3840: (15360, 16), 4096: (12288, 32), 5120: (17408, 40)}[
        facts.hidden_size
    ]
    sizes = {
        "vocab_size": facts.vocab_size,
        "hidden_size": facts.hidden_size,
        "intermediate_size": inner,
        "num_heads": num_heads,
        "num_kv_heads": 1 if is_gemma else 8,
        "head_dim": 512 if is_gemma else 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "target_layer_ids": dspark.taps,
        "num_target_layers": facts.num_layers,
        "family": "gemma4" if is_gemma else "qwen3",
    }
    block = {"num_layers": 5, "block_size": 7, "mask_token_id": dspark.mask_token_id}
    confident = {"has_confidence": True, "confidence_with_markov": True}
    heads = {
        "dspark": DSparkConfig(**sizes, **block, markov_rank=256, **confident),
        "dflash": DSparkConfig(**sizes, **block, markov_type="none"),
        "eagle3": Eagle3Config(**sizes, ttt_length=7),
    }
    for name, head in heads.items():
        of, counted = pairs[name].head, sum(map(math.prod, head.expected_tensors().values()))
        assert of is not None and isinstance(pairs[name].draft, HubRepo)
        assert (of.algorithm, of.block_size, of.taps) == (name, 7, dspark.taps)
        assert of.mask_token_id == head.mask_token_id
        assert of.num_parameters == counted and pairs[name].draft.num_bytes == 2 * counted


def test_codes_of_keys_and_values_are_counted():
    """Half of bf16 and a scale: 4,096 tokens of Qwen3-4B and its head, 41 layers of 8 heads."""
    room = Room("cuda", 80 * GB, 2)
    coded = memory_fit.room_for(RuntimeConfig("cuda", kv="int8"), [room])
    saved = memory_needed_by("qwen3-4b", room) - memory_needed_by("qwen3-4b", coded)
    assert saved == pytest.approx(4096 * 41 * 2 * 8 * (2 * 128 - 136), rel=0.02)


def memory_needed_by(pair: str, room: Room) -> int:
    return pair_memory(PAIRS[pair], room) or 0


def test_what_was_fetched_all_the_same_leaves_its_experts_on_the_ssd(machine, monkeypatch) -> None:
    pair = PAIRS["deepseek-v4-flash"]
    machine(64)
    with pytest.raises(MemoryFullError, match="as stored") as failure:
        hub.check_memory(pair, RuntimeConfig())
    assert "read from the SSD" in failure.value.hint and "--what-if" in failure.value.hint
    monkeypatch.setattr(memory_fit, "locate", lambda name: object())
    monkeypatch.setattr(memory_fit, "pair_footprint", of_pair)
    hub.check_memory(pair, RuntimeConfig())
    memory_fit.check_loadable(pair.name, of_pair(pair), RuntimeConfig())
    machine(16)  # not even what every token reads
    with pytest.raises(MemoryFullError):
        hub.check_memory(pair, RuntimeConfig())
