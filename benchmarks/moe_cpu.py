"""gpt-oss and Qwen3-MoE on a CPU, scaled down: real head and expert sizes, few layers, random
weights.

python benchmarks/moe_cpu.py gpt-oss --json benchmarks/results/gpt-oss-cpu.json

Files in the published layout are written to a temporary folder. Experts, a new set in every call so
that they come from memory, against a sum over as many bytes, in turns; then a step of the whole
model beside the same model in transformers in bfloat16, in turns. Routers with random weights are
uniform, so these are times of a step, not of a released model.
"""

import argparse
import json
import math
import shlex
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.deepseek_v4_cpu import GB, by_transformers, measure_steps, timed
from dspark.bench.document import provenance, write_document
from dspark.checkpoints.moe_config import MoeConfig
from dspark.checkpoints.moe_target import HEAD, wanted_tensors
from dspark.models.moe.layer_program import LayerProgram
from dspark.models.moe.pass_memory import PassMemory
from dspark.targets.base import Target
from dspark.targets.moe import MoeTarget, load_moe
from dspark_kernels.cpu.runtime import Program, current

COMMON: dict[str, Any] = {
    "vocab_size": 8192,
    "max_position_embeddings": 65536,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "eos_token_id": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt-oss": COMMON
    | {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_hidden_layers": 3,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "attention_bias": True,
        "swiglu_limit": 7.0,
        "quantization_config": {"quant_method": "mxfp4"},
    },
    "qwen3-moe": COMMON
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": 2,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "norm_topk_prob": True,
        "attention_bias": False,
        "dtype": "bfloat16",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=CONFIGS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where the files are or will be kept")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each comparison; 0: write")
    parser.add_argument("--no-transformers", action="store_true")
    chosen = parser.parse_args()
    config = CONFIGS[chosen.model]
    with tempfile.TemporaryDirectory() as fresh, torch.inference_mode():
        folder = chosen.folder or Path(fresh)
        if not (folder / "config.json").exists():
            write(folder, config)
        if chosen.seconds == 0:
            return
        num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        target = load_moe(folder, tap_layers=(), rounds=True)
        document: dict[str, Any] = {"stored_bytes": num_bytes, "config": config}
        targets: dict[str, Target] = {"as published": target}
        if not chosen.no_transformers:
            targets["transformers, bfloat16"] = by_transformers(folder)
        document |= {"experts": measure_experts(target, chosen.seconds)}
        steps = measure_steps(targets, chosen.seconds)
        read = bytes_a_token(target)
        rate = document["experts"]["1 rows"]["sum"] * GB
        own = steps["as published"]
        own |= {"bytes_a_token": read, "share": read / own["seconds"] / rate, "memory_rate": rate}
        document |= {"steps": steps}
    print(json.dumps({key: document[key] for key in ("experts", "steps")}, indent=2))
    if chosen.json:
        command = shlex.join(["python", "benchmarks/moe_cpu.py", *sys.argv[1:]])
        write_document(chosen.json, provenance(command) | document)


def measure_experts(target: MoeTarget, seconds: float) -> dict[str, Any]:
    """Medians of GB/s of a layer's routed experts, and of the sum over as many bytes, in turns."""
    blocks, config, shape = target._weights.blocks, target._config, target.expert_shape
    per_call, size = config.experts_per_token, shape.num_bytes
    plain = torch.randint(256, (shape.layers * shape.per_layer * size,), dtype=torch.uint8)
    words, found, runtime = plain.view(torch.int64), {}, current()
    assert runtime is not None, "the CPU's kernels are not there"
    memory = PassMemory(config, 8, 0, rounds=target._rounds)
    memory.x.normal_()
    memory.total.zero_()
    programs = []
    for index, block in enumerate(blocks):
        layer = LayerProgram(config, index, block, memory, rounds=target._rounds)
        programs.append(Program(runtime, [*layer.feed_experts(None)]))
    for rows in (1, 2, 4):
        rates: dict[str, list[float]] = {"experts": [], "sum": []}
        step, at = torch.tensor([rows]), 0
        end = time.perf_counter() + seconds / 3
        while time.perf_counter() < end:
            layer, start = divmod(at, shape.per_layer)
            memory.routes[layer, :rows] = torch.arange(start, start + per_call)
            part = words[at * size // 8 : (at + per_call) * size // 8]
            rates["experts"].append(per_call * size / timed(partial(programs[layer], step)) / GB)
            rates["sum"].append(per_call * size / timed(part.sum) / GB)
            at = (at + per_call) % (shape.layers * shape.per_layer)
        medians = {name: statistics.median(each) for name, each in rates.items()}
        found[f"{rows} rows"] = medians | {"share": medians["experts"] / medians["sum"]}
    return found


def bytes_a_token(target: MoeTarget) -> int:
    """Weights that a step of one token reads: all but the embedding and experts not chosen."""
    shape, weights = target.expert_shape, target._weights
    blocks = (each.num_bytes for block in weights.blocks for each in block.matrices.values())
    routed = shape.layers * shape.per_token * shape.num_bytes
    return weights.matrices[HEAD].num_bytes + sum(blocks) + routed


def write(folder: Path, config: dict[str, Any]) -> None:
    """Files in the published layout, a layer each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    places: dict[str, str] = {}
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, (types, shape) in wanted_tensors(MoeConfig.from_json(config)).items():
        layer = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        shards.setdefault(f"model-{layer}.safetensors", {})[name] = _random(name, types, shape)
    for file, tensors in shards.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _random(name: str, types: tuple[str, ...], shape: tuple[int, ...]) -> torch.Tensor:
    if name.endswith("_scales"):
        return torch.full(shape, 120, dtype=torch.uint8)
    if "U8" in types:
        return torch.randint(256, shape, dtype=torch.uint8)
    mean = 1.0 if "norm" in name else 0.0
    return (mean + torch.randn(shape) * math.sqrt(1 / shape[-1])).bfloat16()


if __name__ == "__main__":
    main()
