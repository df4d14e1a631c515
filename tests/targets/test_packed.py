"""AWQ, GPTQ and fp8 checkpoints of tiny models, from a writer of their own, against float."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from dspark.checkpoints.model_folder import count_parameters
from dspark.checkpoints.quantized_targets import fused
from dspark.errors import CheckpointError
from dspark.targets import dense_files
from dspark.targets.load import load_target
from dspark_kernels import QuantizedWeight
from dspark_kernels.backend import Backend
from dspark_kernels.quantized_weight import quantize_int8
from tests.engine.rollback import check_rollback

PLACE = {"device": torch.device("cpu"), "dtype": torch.float32}
GROUP = 32
SIZES: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
MODELS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
AWQ_ELEMENTS = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbours each nibble of a word holds
Written = tuple[dict[str, torch.Tensor], torch.Tensor]  # the parts, and the matrix they mean


def words(codes: torch.Tensor, elements: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """[A, 8 B] of 0..15 -> int32 [A, B]."""
    made = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
    for place, element in enumerate(elements):
        made |= codes[:, element::8].long() << 4 * place
    return torch.where(made >= 1 << 31, made - (1 << 32), made).int()


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """codes [in, out], zeros and scales [in / GROUP, out] of a matrix [out, in]."""
    grouped = weight.t().unflatten(0, (-1, GROUP))
    low, high = grouped.amin(1).clamp(max=0), grouped.amax(1).clamp(min=0)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(1, 15)
    codes = (grouped / scales[:, None] + zeros[:, None]).round().clamp(0, 15).flatten(0, 1)
    return codes.int(), zeros.int(), scales


def meant(
    codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group: torch.Tensor
) -> torch.Tensor:
    return ((codes - zeros[group]) * scales[group]).t().contiguous()


def write_awq(weight: torch.Tensor) -> Written:
    codes, zeros, scales = quantized(weight)
    parts = {"qweight": words(codes, AWQ_ELEMENTS), "qzeros": words(zeros, AWQ_ELEMENTS)}
    parts["scales"] = scales.half()
    return parts, meant(codes, zeros, scales, torch.arange(len(codes)) // GROUP)


def write_gptq(weight: torch.Tensor, by_activation: bool = False) -> Written:
    codes, zeros, scales = quantized(weight)
    group = torch.arange(len(codes)) // GROUP
    if by_activation:
        order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(len(codes)))
        group, codes = group[order], codes[order]
    parts = {
        "qweight": words(codes.t()).t().contiguous(),
        "qzeros": words(zeros - 1),
        "scales": scales.half(),
        "g_idx": group.int(),
    }
    return parts, meant(codes, zeros, scales, group)


def write_fp8(weight: torch.Tensor) -> Written:
    rows, columns = weight.shape
    codes, full = torch.empty_like(weight), torch.empty_like(weight)
    scales = torch.empty(-(-rows // 128), -(-columns // 128))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            scales[i, j] = weight[block].abs().max() / 448
            codes[block] = (weight[block] / scales[i, j]).to(torch.float8_e4m3fn).float()
            full[block] = codes[block] * scales[i, j]
    return {"weight": codes.to(torch.float8_e4m3fn), "weight_scale_inv": scales}, full


def write_fp8_rows(weight: torch.Tensor) -> Written:
    """One scale a row, or one for all of a matrix of 64 rows."""
    by_row = weight.shape[0] != 64
    scales = weight.abs().amax(1, keepdim=True) if by_row else weight.abs().max().view(1)
    scales = (scales / 448).bfloat16()
    codes = (weight / scales.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scales}, codes.float() * scales.float()


GEMM = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
FP8_ROWS = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
            "input_activations": {"num_bits": 8, "type": "float", "dynamic": True},
        }
    },
}
FORMATS: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor], Written]]] = {
    "awq": (GEMM, write_awq),
    "gptq": (GPTQ, write_gptq),
    "gptq by activation": (GPTQ | {"desc_act": True}, lambda w: write_gptq(w, True)),
    "fp8": (FP8, write_fp8),
    "fp8 by rows": (FP8_ROWS, write_fp8_rows),
}


def write(folder: Path, family: str, name: str) -> Any:
    """The checkpoint, and the float model that it means."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(MODELS[family](**SIZES), dtype=torch.float32).eval()
    settings, write_matrix = FORMATS[name]
    tensors: dict[str, torch.Tensor] = {}
    for key, value in model.state_dict().items():
        matrix = key.removesuffix(".weight")
        if matrix.endswith("_proj"):
            parts, full = write_matrix(value)
            value.copy_(full)
            tensors |= {f"{matrix}.{part}": tensor for part, tensor in parts.items()}
        else:
            tensors[key] = value
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", MODELS)
def test_logits_are_those_of_the_float_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, name: str, is_kept: bool
) -> None:
    """Both as numbers, and packed as where kernels are; then with the kernels' reference."""
    model = write(tmp_path, family, name)
    backend = Backend("triton" if is_kept else "torch", "chosen here")
    monkeypatch.setattr(dense_files, "choose_backend", lambda device: backend)
    target = load_target(tmp_path, tap_layers=(0,), **PLACE)
    linears = [each.down for each in target.decoder.layers]  # type: ignore[attr-defined]
    assert all(isinstance(each.weight, QuantizedWeight) == is_kept for each in linears)
    ids = torch.randint(0, 80, (30,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = model(input_ids=ids[None]).logits[0]
        found = target.verify([target.open()], [ids]).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_what_was_packed_rolls_back(tmp_path: Path) -> None:
    write(tmp_path, "qwen3", "awq")
    check_rollback(load_target(tmp_path, tap_layers=(0, 1), **PLACE))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("awq", {"bits": 8}, "bits 8"),
        ("awq", {"version": "gemv"}, "version gemv"),
        ("gptq", {"bits": 3}, "bits 3"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format marlin"),
        ("fp8", {"activation_scheme": "static"}, "activation_scheme static"),
        ("fp8", {"weight_block_size": [64, 64]}, "weight_block_size"),
        ("fp8", {"weight_block_size": None}, "weight_block_size None"),
        ("fp8", {"quant_method": "compressed-tensors"}, "compressed-tensors with format None"),
        ("fp8 by rows", {"format": "pack-quantized"}, "format pack-quantized"),
        (
            "fp8 by rows",
            {"config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float"}}}},
            "num_bits 4",
        ),
        (
            "fp8 by rows",
            {
                "config_groups": {
                    "group_0": {
                        "weights": {"num_bits": 8, "type": "float"},
                        "input_activations": {"dynamic": False},
                    }
                }
            },
            "of inputs with dynamic False",
        ),
        ("fp8", {"quant_method": "bitsandbytes"}, "bitsandbytes"),
    ],
)
def test_other_packings_are_refused_by_name(
    tmp_path: Path, name: str, changes: dict[str, Any], said: str
) -> None:
    write(tmp_path, "llama", name)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=said) as caught:
        load_target(tmp_path, tap_layers=(), **PLACE)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("qzeros", None, "lacks .*down_proj.qzeros"),
        ("qweight", None, "lacks .*down_proj.qweight"),
        ("qweight", lambda t: t[:-1].contiguous(), "down_proj"),
        ("scales", lambda t: t[:, :-1].contiguous(), "down_proj"),
        ("scales", lambda t: t.int(), "scales is I32"),
        ("qzeros", lambda t: t.flatten(), "down_proj"),
    ],
)
def test_broken_parts_are_named(tmp_path: Path, part: str, change: Any, said: str) -> None:
    from safetensors.torch import load_file

    write(tmp_path, "llama", "awq")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    key = f"model.layers.1.mlp.down_proj.{part}"
    value = tensors.pop(key)
    if change is not None:
        tensors[key] = change(value)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=said) as caught:
        load_target(tmp_path, tap_layers=(), **PLACE)
    assert "\n" not in caught.value.message


def test_its_memory_is_counted_unpacked(tmp_path: Path) -> None:
    model = write(tmp_path, "llama", "awq")
    scales_and_zeros = sum(
        value.numel() // GROUP + value.numel() // GROUP // 8
        for name, value in model.state_dict().items()
        if name.endswith("_proj.weight")
    )
    assert count_parameters(tmp_path) == model.num_parameters() + scales_and_zeros


def test_a_matrix_alone_is_not_copied() -> None:
    """On a GPU the copy would be as large as all the matrices that are not joined."""
    plain = torch.randn(4, 128)
    packed = quantize_int8(plain)
    assert fused([plain], torch.float32) is plain
    assert fused([packed], torch.float32) is packed
