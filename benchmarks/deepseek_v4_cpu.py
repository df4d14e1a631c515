"""DeepSeek-V4 on a CPU, scaled down: real head and expert sizes, few layers, random weights.

python benchmarks/deepseek_v4_cpu.py --json benchmarks/results/deepseek-v4-cpu.json

Files in the published layout are written to a temporary folder. Packed experts, a new set in every
call so that they come from memory, against a sum over as many bytes, in turns; then a step of the
whole model beside the same model in transformers, unpacked to bfloat16, in turns, and the memory
of both. Routers with random weights are uniform, so these are times of a step, not of the released
model. Last, a store with slots for a tenth of the experts, which are chosen as in real text.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from dspark.bench.document import provenance, write_document
from dspark.checkpoints.deepseek_v4_layout import expert_shapes
from dspark.checkpoints.deepseek_v4_target import HASH_TABLE, dense_shapes
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.hub.tier_plan import popular_share
from dspark.models.deepseek_v4.layer_program import LayerProgram
from dspark.models.deepseek_v4.pass_memory import PassMemory
from dspark.models.expert_store import ExpertStore
from dspark.targets.base import Target
from dspark.targets.deepseek_v4_native import DeepseekV4Target, load_deepseek_v4
from dspark_kernels.cpu.runtime import Program, current

GB = 1e9
PROMPT, PROMPTS = 64, 3
STORE_PASSES = 2000
PRINTED = ("experts", "steps", "memory_bytes", "store")
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "vocab_size": 8192,
    "hidden_size": 4096,
    "num_hidden_layers": 3,
    "num_attention_heads": 64,
    "num_key_value_heads": 1,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 1024,
    "o_lora_rank": 1024,
    "o_groups": 8,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 32,
    "num_experts_per_tok": 6,
    "n_shared_experts": 1,
    "num_hash_layers": 1,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
    "swiglu_limit": 10.0,
    "hidden_act": "silu",
    "sliding_window": 128,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "compress_ratios": [0, 4, 128],
    "max_position_embeddings": 65536,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "expert_dtype": "fp4",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
}
PLAIN = ("embed.", "head.", "gate.", "compressor.", "weights_proj", "norm", "_fn", "_base")
PLAIN += ("_scale", "attn_sink")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where the files are or will be kept")
    parser.add_argument("--experts", type=int, default=CONFIG["n_routed_experts"])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each comparison; 0: write")
    parser.add_argument("--no-transformers", action="store_true")
    chosen = parser.parse_args()
    config = CONFIG | {"n_routed_experts": chosen.experts}
    with tempfile.TemporaryDirectory() as fresh, torch.inference_mode():
        folder = chosen.folder or Path(fresh)
        if not (folder / "config.json").exists():
            write(folder, config)
        if chosen.seconds == 0:
            return
        num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        target = load_deepseek_v4(folder, tap_layers=(), rounds=True)
        document: dict[str, Any] = {"stored_bytes": num_bytes, "config": config}
        targets: dict[str, Target] = {"as published": target}
        target.prefill(target.open(), torch.arange(2, PROMPT))  # compiles
        memory = {"as published": own_memory()}
        if not chosen.no_transformers:
            targets["transformers, bfloat16"] = by_transformers(folder)
            memory["transformers, bfloat16"] = own_memory() - memory["as published"]
        print("loaded", flush=True)
        document |= {"experts": measure_experts(target, chosen.seconds), "memory_bytes": memory}
        steps = measure_steps(targets, chosen.seconds)
        read, rate = bytes_a_token(target), memory_rate(target)
        own = steps["as published"]
        own |= {"bytes_a_token": read, "share": read / own["seconds"] / rate, "memory_rate": rate}
        document |= {"steps": steps, "store": measure_store(target)}
    print(json.dumps({key: document[key] for key in PRINTED}, indent=2))
    if chosen.json:
        command = shlex.join(["python", "benchmarks/deepseek_v4_cpu.py", *sys.argv[1:]])
        write_document(chosen.json, provenance(command) | document)


def measure_experts(target: DeepseekV4Target, seconds: float) -> dict[str, Any]:
    """Medians of GB/s of a layer's routed experts, and of the sum over as many bytes, in turns."""
    blocks, config = target._weights.blocks, target._decoder._config
    num_experts, per_call = config.num_experts, config.experts_per_token
    first = blocks[0].experts[0]
    size = sum(each.num_bytes for each in (first.gate, first.up, first.down))
    plain = torch.randint(256, (len(blocks) * num_experts * size // 8 * 8,), dtype=torch.uint8)
    words, found, runtime = plain.view(torch.int64), {}, current()
    assert runtime is not None, "the CPU's kernels are not there"
    memory = PassMemory(config, 8, 0)
    memory.x.normal_()
    programs = [
        Program(runtime, [*LayerProgram(config, i, block, memory, False).feed_experts()])
        for i, block in enumerate(blocks)
    ]
    for rows in (1, 2, 4):
        rates: dict[str, list[float]] = {"experts": [], "sum": []}
        step, at = torch.tensor([rows] + [0] * 16), 0
        end = time.perf_counter() + seconds / 3
        while time.perf_counter() < end:
            layer, start = divmod(at, num_experts - num_experts % per_call)
            memory.routes[layer, :rows] = torch.arange(start, start + per_call)
            part = words[at * size // 8 : (at + per_call) * size // 8]
            taken = timed(partial(programs[layer], step))
            rates["experts"].append(per_call * size / taken / GB)
            rates["sum"].append(per_call * size / timed(part.sum) / GB)
            at = (at + per_call) % (len(blocks) * (num_experts - num_experts % per_call))
        medians = {name: statistics.median(each) for name, each in rates.items()}
        found[f"{rows} rows"] = medians | {"share": medians["experts"] / medians["sum"]}
    return found


def measure_steps(targets: dict[str, Target], seconds: float) -> dict[str, Any]:
    """Medians of a step of one token behind a prompt, and of the prompt itself, in turns."""
    ids = torch.randint(2, CONFIG["vocab_size"], (PROMPT,))
    slots = {}
    taken: dict[str, list[float]] = {name: [] for name in targets}
    prompts: dict[str, list[float]] = {name: [] for name in targets}
    for _ in range(1 + PROMPTS):
        for name, target in targets.items():
            slots[name] = target.open()
            prompts[name].append(timed(partial(target.prefill, slots[name], ids)))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, target in targets.items():
            token = torch.randint(2, CONFIG["vocab_size"], (1,))
            taken[name].append(timed(partial(target.verify, [slots[name]], [token])))
            target.commit([slots[name]], [1])
    return {
        name: {
            "seconds": statistics.median(each),
            "tokens_per_second": 1 / statistics.median(each),
            "steps": len(each),
            "prompt_seconds": statistics.median(prompts[name][1:]),  # the first one compiles
            "prompt_tokens": PROMPT,
        }
        for name, each in taken.items()
    }


def bytes_a_token(target: DeepseekV4Target) -> int:
    """Weights that a step of one token reads: all but the embedding and experts not chosen."""
    config, weights = target._decoder._config, target._weights
    total = sum(each.num_bytes for name, each in weights.matrices.items() if "embed" not in name)
    for block in weights.blocks:
        expert = block.experts[0]
        size = sum(each.num_bytes for each in (expert.gate, expert.up, expert.down))
        total += config.experts_per_token * size
    return total


def memory_rate(target: DeepseekV4Target) -> float:
    """Bytes a second of a sum over experts where they are mapped; with one thread, since each is
    too short for several."""
    codes = [each.gate.codes for block in target._weights.blocks for each in block.experts]
    words = [each.view(torch.int64) for each in codes]
    for each in words:
        each.sum()
    taken = timed(lambda: [each.sum() for each in words])
    return sum(each.nbytes for each in words) / taken


def measure_store(target: DeepseekV4Target) -> dict[str, Any]:
    """Hits of the second half of passes of one row, whose experts are drawn by V4-Flash's measured
    popularity, and what other draws by the same popularity give the most popular. Copies are made
    by the store's own thread meanwhile."""
    layers, config = [block.experts for block in target._weights.blocks], target._decoder._config
    count, top = config.num_experts, config.experts_per_token
    store = ExpertStore(layers, len(layers) * count // 10)
    reached = torch.tensor([popular_share(n / count) for n in range(count + 1)])
    popularity = reached.diff()[torch.stack([torch.randperm(count) for _ in layers])]
    for number in range(STORE_PASSES):
        if number == STORE_PASSES // 2:
            store.hits = store.misses = 0
        store.between_passes()
        store.note(torch.multinomial(popularity, top).unsqueeze(1))
        time.sleep(0.001)  # a pass
    others = torch.multinomial(popularity.repeat(STORE_PASSES, 1), top).view(-1, len(layers), top)
    used = torch.zeros(len(layers), count).scatter_add_(
        1, others.transpose(0, 1).flatten(1), torch.ones(len(layers), STORE_PASSES * top)
    )
    best = popularity.flatten().argsort(descending=True)[: store.num_slots]
    predicted = float(used.flatten()[best].sum() / used.sum())
    store.close()
    found = {"hits": store.hits, "misses": store.misses, "failures": store.failures}
    share = store.hits / (store.hits + store.misses)
    slots = {"slots": store.num_slots, "experts": store.num_experts}
    return slots | found | {"hit_share": share, "predicted_share": predicted}


def own_memory() -> int:
    """Bytes of this process that are not pages of files."""
    info = psutil.Process().memory_info()
    return int(info.rss - info.shared)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def by_transformers(folder: Path) -> Target:
    from dspark.targets.hf import load_hf

    where = {"device": torch.device("cpu"), "dtype": torch.bfloat16}
    return load_hf(folder, tap_layers=(), stop_token_ids=frozenset(), **where)


def write(folder: Path, config: dict[str, Any]) -> None:
    """Files in the published layout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    sizes = DeepseekV4TargetConfig.from_json(config)
    places = {}
    for shard in range(-1, sizes.num_layers):
        file = f"model-{shard + 2:05}-of-{sizes.num_layers + 1:05}.safetensors"
        tensors = dict(_tensors(sizes, shard))
        save_file(tensors, folder / file)
        places |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _tensors(sizes: DeepseekV4TargetConfig, layer: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Of one layer, of -1 those outside of all."""
    prefix = f"layers.{layer}."
    for name, shape in dense_shapes(sizes).items():
        if name.startswith("layers.") != (layer >= 0) or (layer >= 0 and prefix not in name):
            continue
        if len(shape) < 2 or any(part in name for part in PLAIN) or name.endswith("ape"):
            is_float = len(shape) < 2 or name.endswith(("_fn", "ape"))
            mean = 1.0 if "norm" in name else 0.0
            tensor = mean + torch.randn(shape) * shape[-1] ** -0.5
            yield name, tensor.to(torch.float32 if is_float else torch.bfloat16)
            continue
        codes = torch.randint(40, 56, shape, dtype=torch.uint8)  # from 0.25 to 0.94
        signs = torch.randint(2, shape, dtype=torch.uint8) << 7
        yield name, (codes | signs).view(torch.float8_e4m3fn)
        blocks = -(-shape[0] // 128), -(-shape[1] // 128)
        scales = torch.full(blocks, 122, dtype=torch.uint8)
        yield name.replace(".weight", ".scale"), scales.view(torch.float8_e8m0fnu)
    if layer < 0:
        return
    for expert in range(sizes.num_experts):
        for matrix, (rows, columns) in expert_shapes(sizes).items():
            name = f"{prefix}ffn.experts.{expert}.{matrix}"
            codes = torch.randint(256, (rows, columns // 2), dtype=torch.uint8)
            yield f"{name}.weight", codes.view(torch.int8)
            scales = torch.full((rows, columns // 32), 120, dtype=torch.uint8)
            yield f"{name}.scale", scales.view(torch.float8_e8m0fnu)
    if layer < sizes.num_hash_layers:
        shape = sizes.vocab_size, sizes.num_experts
        yield (
            f"{prefix}{HASH_TABLE}",
            torch.rand(shape).argsort(1)[:, : sizes.experts_per_token].contiguous(),
        )


if __name__ == "__main__":
    main()
