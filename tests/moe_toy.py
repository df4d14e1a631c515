"""Toys of gpt-oss and Qwen3-MoE in the layouts that are published, by writers that share no code
with the readers; beside each, the same numbers as transformers reads them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, GptOssForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
VALUES = torch.cat([E2M1, -E2M1])
RUN = 32  # inputs that share a scale
BLOCK = 128  # numbers of FP8 each way that do
SMALL: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "eos_token_id": None,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 8.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 256,
}


def mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[E, in, out] -> blocks [E, out, in / 32, 16], scales [E, out, in / 32], what they mean."""
    runs = weight.transpose(1, 2).unflatten(-1, (-1, RUN))
    exponent = (runs.abs().amax(-1) / 6.0).log2().ceil()
    scaled = runs / exponent.exp2().unsqueeze(-1)
    codes = (scaled.unsqueeze(-1) - VALUES).abs().argmin(-1)
    blocks = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
    meant = VALUES[codes] * exponent.exp2().unsqueeze(-1)
    return blocks, (exponent + 127).to(torch.uint8), meant.flatten(-2).transpose(1, 2)


def write_oss(path: Path, **settings: Any) -> None:
    """Into path / "packed", and path / "float" for transformers."""
    torch.manual_seed(4)
    settings = SMALL | {"intermediate_size": 32, "num_local_experts": 6} | settings
    model = GptOssForCausalLM(GptOssConfig(sliding_window=10, **settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # which begin as zeros
            if name.endswith(("bias", "sinks")):
                parameter.normal_(0.0, 0.5)
    model.save_pretrained(path / "float")
    model.save_pretrained(path / "packed")
    file = path / "float" / "model.safetensors"
    tensors, packed = load_file(file), {}
    for name, value in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            blocks, scales, tensors[name] = mxfp4(value)
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        else:
            packed[name] = value.bfloat16()
            tensors[name] = packed[name].float()
    _save(file, tensors)
    _save(path / "packed" / "model.safetensors", packed)
    _quantized(
        path / "packed",
        {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
        },
    )


def write_qwen(path: Path, *, is_fp8: bool = False, **settings: Any) -> None:
    """As write_oss; `is_fp8`: matrices but the router's and the tables in FP8 with a scale for
    128 x 128 numbers."""
    torch.manual_seed(6)
    sizes = {"hidden_size": 128, "moe_intermediate_size": 128, "intermediate_size": 64}
    settings = SMALL | sizes | {"num_experts": 5, "norm_topk_prob": True} | settings
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**settings)).eval()
    model.save_pretrained(path / "float")
    model.save_pretrained(path / "packed")
    file = path / "float" / "model.safetensors"
    tensors, packed = load_file(file), {}
    for name, value in tensors.items():
        packed[name] = value.bfloat16()
        if is_fp8 and name.endswith("_proj.weight"):
            packed[name], packed[f"{name}_scale_inv"], tensors[name] = fp8(value)
        else:
            tensors[name] = packed[name].float()
    _save(file, tensors)
    _save(path / "packed" / "model.safetensors", packed)
    if is_fp8:
        how = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
        _quantized(path / "packed", how | {"weight_block_size": [BLOCK, BLOCK]})


def fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[N, K] -> codes, a scale in bfloat16 for each block, what they mean."""
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    codes, meant = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(weight.shape)
    scales = torch.empty(rows, columns, dtype=torch.bfloat16)
    for row in range(rows):
        for column in range(columns):
            part = (
                slice(row * BLOCK, (row + 1) * BLOCK),
                slice(column * BLOCK, (column + 1) * BLOCK),
            )
            scales[row, column] = weight[part].abs().max() / 448.0
            codes[part] = (weight[part] / scales[row, column].float()).to(torch.float8_e4m3fn)
            meant[part] = codes[part].float() * scales[row, column].float()
    return codes, scales, meant


def _save(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    whole = {name: value.contiguous() for name, value in tensors.items()}
    save_file(whole, file, metadata={"format": "pt"})


def _quantized(folder: Path, how: dict[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": how}))
