"""The head in a DeepSeek-V4 target's own shards, against an independent writer. A second or two."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dspark.checkpoints.deepseek_v4 import read_own_config, read_own_head
from dspark.checkpoints.deepseek_v4_config import (
    DeepseekV4HeadConfig,
    count_own_parameters,
    dense_shapes,
    expert_shapes,
)
from dspark.checkpoints.heads import find_head, read_any_config, read_draft
from dspark.errors import CheckpointError
from tests.deepseek_v4_toy import CONFIG, STAGES, write

CPU = torch.device("cpu")
SHARDS = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("v4")
    return folder, write(folder)


@pytest.fixture
def own(toy: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(toy[0], tmp_path / "v4")


def change_config(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(raw))


def change_tensor(
    folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]
) -> None:
    """None takes the tensor away, from its shard and from the index."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shard = folder / index["weight_map"][name]
    tensors = load_file(shard)
    changed = change(tensors.pop(name))
    if changed is None:
        del index["weight_map"][name]
        path.write_text(json.dumps(index))
    else:
        tensors[name] = changed
    save_file(tensors, shard)


def test_every_tensor_comes_back(toy: tuple[Path, dict[str, torch.Tensor]]) -> None:
    check_tensors(*toy)


def test_every_tensor_of_another_size_comes_back(tmp_path: Path) -> None:
    """As Pro is to Flash: wider, more groups, more experts, a larger rank; here fewer taps too."""
    sizes = {"hidden_size": 96, "o_groups": 4, "n_routed_experts": 7, "dspark_markov_rank": 32}
    check_tensors(tmp_path, write(tmp_path, dspark_target_layer_ids=[2, 3], **sizes))


def check_tensors(folder: Path, meaning: dict[str, torch.Tensor]) -> None:
    config, weights = read_own_head(folder, device=CPU, dtype=torch.float32)
    found = dict(weights.dense)
    for stage, experts in enumerate(weights.experts):
        for matrix, packed in experts.items():
            assert len(packed) == config.num_experts
            for expert in range(config.num_experts):
                name = f"mtp.{stage}.ffn.experts.{expert}.{matrix}.weight"
                found[name] = packed[expert].dequantized(torch.float32)
    expected = {name: tensor for name, tensor in meaning.items() if name.startswith("mtp.")}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_experts_stay_packed(toy: tuple[Path, Any]) -> None:
    config, weights = read_own_head(toy[0], device=CPU, dtype=torch.float32)
    numbers = config.num_experts * config.expert_size * config.hidden_size
    for experts in weights.experts:
        for packed in experts.values():
            num_bytes = sum(weight.codes.nbytes + weight.scales.nbytes for weight in packed)
            assert num_bytes == numbers // 2 + numbers // 32


def test_the_dtype_is_that_of_the_pass_but_where_the_target_computes_in_float32(
    toy: tuple[Path, Any],
) -> None:
    dense = read_own_head(toy[0], device=CPU, dtype=torch.bfloat16)[1].dense
    in_float32 = {name for name, tensor in dense.items() if tensor.dtype == torch.float32}
    assert "mtp.1.attn.wq_b.weight" not in in_float32 and "mtp.0.main_proj.weight" not in in_float32
    assert {
        "mtp.0.attn_norm.weight",
        "mtp.1.attn.attn_sink",
        "mtp.1.hc_ffn_fn",
        "mtp.1.ffn.gate.weight",
        "mtp.2.hc_head_fn",
        "mtp.2.markov_head.markov_w2.weight",
        "mtp.2.confidence_head.proj.weight",
    } <= in_float32


def test_stages_are_counted_in_the_index(toy: tuple[Path, Any]) -> None:
    config = read_own_config(toy[0])
    assert CONFIG["num_nextn_predict_layers"] == 1 and config.num_stages == STAGES
    assert config.target_layer_ids == (1, 2, 3) and config.block_size == 5


def test_it_is_found_among_the_packagings(toy: tuple[Path, Any]) -> None:
    assert read_any_config(toy[0]) == read_own_config(toy[0])
    with pytest.raises(CheckpointError, match="only with its own target"):
        read_draft(toy[0])
    with pytest.raises(CheckpointError, match="only with its own target"):
        find_head(toy[0])


def test_only_shards_with_the_head_are_needed(own: Path) -> None:
    (own / SHARDS[0]).unlink()
    with safe_open(own / SHARDS[1], "pt") as shard:
        assert any(not name.startswith("mtp.") for name in shard.keys())  # noqa: SIM118
    config, weights = read_own_head(own, device=CPU, dtype=torch.float32)
    assert len(weights.experts) == config.num_stages
    assert all(name.startswith("mtp.") for name in weights.dense)


def test_a_weight_and_its_scale_may_lie_in_two_shards(
    own: Path, toy: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    index = json.loads((own / "model.safetensors.index.json").read_text())
    moved = "mtp.0.attn.wq_b.scale"
    source, target = load_file(own / SHARDS[1]), load_file(own / SHARDS[2])
    target[moved] = source.pop(moved)
    save_file(source, own / SHARDS[1])
    save_file(target, own / SHARDS[2])
    index["weight_map"][moved] = SHARDS[2]
    (own / "model.safetensors.index.json").write_text(json.dumps(index))
    dense = read_own_head(own, device=CPU, dtype=torch.float32)[1].dense
    name = "mtp.0.attn.wq_b.weight"
    assert torch.equal(dense[name], toy[1][name])


def test_a_matrix_may_be_stored_plain(own: Path) -> None:
    """Some conversions of the checkpoint hold wo_a in bfloat16."""
    name = "mtp.1.attn.wo_a.weight"
    plain = torch.randn(64, 320).bfloat16()
    change_tensor(own, name, lambda _: plain)
    change_tensor(own, name.replace("weight", "scale"), lambda _: None)
    dense = read_own_head(own, device=CPU, dtype=torch.float32)[1].dense
    assert torch.equal(dense[name], plain.float())


def test_scales_may_be_bytes(own: Path, toy: tuple[Path, dict[str, torch.Tensor]]) -> None:
    for name in ("mtp.0.attn.wkv.scale", "mtp.0.ffn.experts.2.w1.scale"):
        change_tensor(own, name, lambda scale: scale.view(torch.uint8))
    weights = read_own_head(own, device=CPU, dtype=torch.float32)[1]
    name = "mtp.0.attn.wkv.weight"
    assert torch.equal(weights.dense[name], toy[1][name])
    expert = weights.experts[0]["w1"][2].dequantized(torch.float32)
    assert torch.equal(expert, toy[1]["mtp.0.ffn.experts.2.w1.weight"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "deepseek_v41"}, "deepseek_v41.*n-gram memory"),
        ({"expert_dtype": "fp8"}, "expert_dtype is fp8"),
        ({"scoring_func": "softmax"}, "scoring_func is softmax"),
        ({"compress_ratios": [0, 4, 128, 0, 0, 4, 0]}, "compresses its context"),
        ({"dspark_target_layer_ids": [1, 2, 4]}, "are not valid layers of the target"),
        ({"dspark_noise_token_id": 96}, "is not a valid token"),
        ({"hc_mult": 0}, "num_streams 0 is out of range"),
        ({"swiglu_limit": -1}, "swiglu_limit -1 is not positive"),
        ({"n_routed_experts": 2**30}, "lacks experts"),
        ({"dspark_block_size": 2**20}, "dspark_block_size is out"),
        ({"hc_sinkhorn_iters": 2**30}, "hc_sinkhorn_iters is"),
        ({"quantization_config": None}, "malformed"),
        ({"compress_ratios": 4}, "malformed"),
        ({"dspark_markov_rank": 8}, "markov_w1.weight is BF16"),
        ({"moe_intermediate_size": 64}, "is damaged or of another kind"),
    ],
)
def test_what_is_not_established_is_refused(own: Path, changes: dict[str, Any], said: str) -> None:
    change_config(own, **changes)
    with pytest.raises(CheckpointError, match=said):
        read_own_head(own, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("mtp.0.main_norm.weight", lambda _: None, "lacks mtp.0.main_norm.weight"),
        ("mtp.1.attn.wq_a.scale", lambda _: None, "wq_a.weight is F8_E4M3"),
        ("mtp.1.attn.wq_a.scale", lambda t: t[:1], "wq_a.scale is F8_E8M0"),
        ("mtp.2.ffn.experts.5.w2.weight", lambda t: t.float(), "w2.weight is F32"),
        ("mtp.2.ffn.experts.5.w2.scale", lambda _: None, "lacks mtp.2.ffn.experts.5.w2.scale"),
    ],
)
def test_damage_is_named(own: Path, name: str, change: Any, said: str) -> None:
    change_tensor(own, name, change)
    with pytest.raises(CheckpointError, match=said):
        read_own_head(own, device=CPU, dtype=torch.float32)


def test_a_surplus_tensor_is_named(own: Path) -> None:
    tensors = load_file(own / SHARDS[2])
    save_file(tensors | {"mtp.2.e_proj.weight": torch.ones(2)}, own / SHARDS[2])
    index = json.loads((own / "model.safetensors.index.json").read_text())
    index["weight_map"]["mtp.2.e_proj.weight"] = SHARDS[2]
    (own / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"unexpected 'mtp\.2\.e_proj"):
        read_own_head(own, device=CPU, dtype=torch.float32)


def test_a_target_without_its_head_says_so(own: Path) -> None:
    path = own / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    kept = {name: file for name, file in index["weight_map"].items() if name[:4] != "mtp."}
    path.write_text(json.dumps(index | {"weight_map": kept}))
    with pytest.raises(CheckpointError, match="tensors are missing"):
        read_own_config(own)


def test_the_sizes_of_flash_are_those_of_its_published_index() -> None:
    """4,705 tensors of `mtp.*` in 10,862,838,300 bytes; 19,845,850,215 parameters, without the 256
    biases that each stage routes by."""
    flash = {
        "hidden_size": 4096,
        "num_hidden_layers": 43,
        "num_attention_heads": 64,
        "head_dim": 512,
        "qk_rope_head_dim": 64,
        "q_lora_rank": 1024,
        "o_lora_rank": 1024,
        "o_groups": 8,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "num_experts_per_tok": 6,
        "vocab_size": 129280,
        "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0, 0, 0],
        "quantization_config": {"weight_block_size": [128, 128]},
        "dspark_noise_token_id": 128799,
        "dspark_target_layer_ids": [40, 41, 42],
        "dspark_markov_rank": 256,
    }
    config = DeepseekV4HeadConfig.from_json(CONFIG | flash, STAGES)
    dense = dense_shapes(config)
    in_fp8 = [name for name in dense if re.search(r"w[qkvo]+_?[ab]?\.w|shared|main_proj", name)]
    in_bf16 = [name for name in dense if name.endswith(".weight") and name not in in_fp8]
    numbers = {name: math.prod(shape) for name, shape in dense.items()}
    experts = [math.prod(shape) for shape in expert_shapes(config).values()] * 3 * 256
    num_tensors = len(dense) + len(in_fp8) + 2 * len(experts)
    assert (len(in_fp8), len(in_bf16), num_tensors) == (25, 20, 4705)
    in_float32 = [name for name in dense if name not in in_fp8 and name not in in_bf16]
    num_bytes = sum(numbers[name] + numbers[name] // 128**2 for name in in_fp8)
    num_bytes += 2 * sum(numbers[name] for name in in_bf16)
    num_bytes += 4 * sum(numbers[name] for name in in_float32)
    assert num_bytes + sum(experts) // 2 + sum(experts) // 32 == 10_862_838_300
    assert count_own_parameters(config) == 19_845_850_215 + 3 * 256
