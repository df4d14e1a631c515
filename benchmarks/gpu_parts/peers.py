"""Decoding of one random Qwen3 by other programs and by our own target, in the same run."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch

from gpu_parts.models import open_full, pass_at, random_target, target_of
from gpu_parts.rounds import CHAIN
from gpu_parts.setting import Record, Setting, attempt, relative_error
from gpu_parts.shapes import BLOCK_SIZE, MARKOV_RANK, ModelShape
from gpu_parts.stopwatch import Arm, Stopwatch, against_floor

TRIALS = 3
COMPILED = "transformers, static cache, compiled"
RANDOM_DRAFTS = "next to no draft of random weights is kept: the rate is about that of rounds"


def beside_peers(setting: Setting) -> Iterator[Record]:
    """Programs that compile come last: they may not finish in time."""
    shape = setting.shapes[0]
    context, num_tokens = (40, 3) if setting.is_tiny else (512, 64)
    facts = {"shape": shape.name, "context": context}
    models: list[Any] = []
    failed = attempt(
        facts | {"program": "transformers"},
        lambda: models.append(random_model(shape, setting)) or {},
    )
    yield attempt(
        facts | {"program": "dspark", "chain": CHAIN},
        lambda: our_step(models[0] if models else None, shape, context, setting),
    )
    if not models:
        yield failed
        return
    model = models[0]
    prompt = torch.randint(0, shape.vocab_size, (1, context), device=setting.device)
    given = (model, prompt, num_tokens)
    lookup = {"prompt_lookup_num_tokens": BLOCK_SIZE}
    programs: list[tuple[str, Callable[[], Record]]] = [
        ("transformers, eager", lambda: transformers_rate(*given, {})),
        ("DeepSpec, its own loop", lambda: deepspec_rate(*given, shape, setting)),
        ("flashspec, prompt lookup, eager", lambda: flashspec_rate(*given)),
        ("transformers, assisted by prompt lookup", lambda: transformers_rate(*given, lookup)),
        ("transformers, assisted by a model", lambda: assisted_rate(*given, shape, setting)),
        (COMPILED, lambda: transformers_rate(*given, {"cache_implementation": "static"})),
    ]
    for name, run in programs:
        if setting.is_tiny and name == COMPILED:
            yield facts | {"program": name, "skipped": "compiles for minutes on a CPU"}
            continue
        yield attempt(facts | {"program": name}, run)


def random_model(shape: ModelShape, setting: Setting) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        max_position_embeddings=40960,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with setting.device:
        model = Qwen3ForCausalLM(config).to(torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def our_step(model: Any, shape: ModelShape, context: int, setting: Setting) -> Record:
    """The same weights: first the same logits, then the time of a step."""
    target = (
        random_target(shape, setting)
        if model is None
        else target_of(dict(model.state_dict()), shape, setting)
    )
    cache, slots = target.cache, open_full(target.cache, context + 1)
    ids = torch.randint(0, shape.vocab_size, (32,), device=setting.device)
    error = None
    if model is not None:
        ours = target.run(ids, pass_at(cache, slots, [0], [32], causal=True)).logits
        error = relative_error(ours, model(ids.unsqueeze(0)).logits[0])
    rows = pass_at(cache, slots, [context], [1], causal=True)
    token = ids[:1].clone()
    step = Arm(lambda: target.run(token, rows).logits.argmax(-1))
    timing = Stopwatch(setting).measure({"plain": step})["plain"]
    record = against_floor(timing, shape.step_bytes(context), setting)
    if record.get("us"):
        record["tokens_per_second"] = 1e6 / record["us"]
    return record | {"logits_to_transformers": error}


def transformers_rate(model: Any, prompt: torch.Tensor, num_tokens: int, options: Record) -> Record:
    def generate(count: int) -> int:
        output = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False,
            **options,
        )  # fmt: skip
        return int(output.shape[1]) - prompt.shape[1]

    return rate_of(generate, num_tokens, prompt.is_cuda)


def assisted_rate(
    model: Any, prompt: torch.Tensor, num_tokens: int, shape: ModelShape, setting: Setting
) -> Record:
    """An assistant of a twelfth of the layers, as large a share as Qwen3-0.6B's of the 8B."""
    assistant = random_model(replace(shape, num_layers=max(shape.num_layers // 12, 1)), setting)
    record = transformers_rate(model, prompt, num_tokens, {"assistant_model": assistant})
    return record | {"note": RANDOM_DRAFTS}


def flashspec_rate(model: Any, prompt: torch.Tensor, num_tokens: int) -> Record:
    """Not compiled: its first compiled call takes minutes."""
    flashspec = import_module("flashspec")
    engine = import_module("flashspec.engine")
    target = engine.TargetModel("random", prompt.device, model.dtype, model=model)
    config = flashspec.FlashSpecConfig(
        device=str(prompt.device),
        drafter_strategy="bandit",
        bandit=flashspec.BanditConfig(n_arms=1),
        sampling=flashspec.SamplingConfig(temperature=0.0),
        compile=False,
    )
    speculative = flashspec.SpeculativeEngine(config, [engine.NgramDrafter()], target)

    def generate(count: int) -> int:
        return int(speculative.generate(prompt, max_new_tokens=count).n_tokens_generated)

    return rate_of(generate, num_tokens, prompt.is_cuda)


class DeepSpecSettings(SimpleNamespace):
    """DeepSpec asks for settings by attribute and with `in`."""

    def __contains__(self, name: str) -> bool:
        return name in vars(self)


def keep_crop(*modules: Any) -> None:
    """The loop crops its caches to a length; transformers (5.23) takes what to cut off instead."""
    from transformers import DynamicCache

    class Cache(DynamicCache):
        def crop(self, length: int) -> None:
            surplus = self.get_seq_length() - length
            if surplus > 0:
                super().crop(-surplus)

    for module in modules:
        module.DynamicCache = Cache


def deepspec_rate(
    model: Any, prompt: torch.Tensor, num_tokens: int, shape: ModelShape, setting: Setting
) -> Record:
    """DeepSpec's evaluation loop with a random head of the released one's size."""
    if setting.deepspec is None:
        return {"skipped": "--deepspec names no checkout of it"}
    sys.path.insert(0, str(setting.deepspec))
    evaluation = import_module("deepspec.eval.dspark.evaluator")
    keep_crop(evaluation, import_module("deepspec.eval.base_evaluator"))
    config = import_module("deepspec.modeling.dspark.qwen3.config").build_draft_config(
        model.config,
        DeepSpecSettings(
            num_draft_layers=shape.num_draft_layers,
            target_layer_ids=list(shape.tap_layers),
            confidence_head_alpha=1.0,
            confidence_head_with_markov=True,
            markov_rank=MARKOV_RANK,
            markov_head_type="vanilla",
            block_size=BLOCK_SIZE,
            mask_token_id=0,
            num_anchors=1,
        ),
    )
    config._attn_implementation = "sdpa"
    with setting.device:
        draft = evaluation.Qwen3DSparkModel(config).to(torch.bfloat16).eval()
    draft.initialize_embeddings_and_head(
        embed_tokens=model.model.embed_tokens, lm_head=model.lm_head
    )
    evaluator = object.__new__(evaluation.Qwen3DSparkEvaluator)
    evaluator.target_model, evaluator.draft_model = model, draft
    evaluator.confidence_head_recorder = None
    rounds: list[int] = []

    def generate(count: int) -> int:
        evaluator.args = SimpleNamespace(
            max_new_tokens=count, temperature=0.0, confidence_threshold=0.0
        )
        output = evaluator.generate_one_sample(input_ids=prompt, stop_token_ids=None)
        rounds.append(int(output.verify_count))
        return int(output.num_output_tokens)

    record = rate_of(generate, num_tokens, prompt.is_cuda)
    rate, tokens_a_round = record["tokens_per_second"], num_tokens / max(rounds[-2] - rounds[-1], 1)
    return record | {
        "tokens_a_round": tokens_a_round,
        "round_us": tokens_a_round / rate * 1e6 if rate else None,
        "note": RANDOM_DRAFTS,
    }


def rate_of(generate: Callable[[int], int], num_tokens: int, is_timed: bool) -> Record:
    """Tokens a second after the first: a long answer's time less a short one's."""
    short = 1 if num_tokens < 16 else 8
    generate(num_tokens + short)  # warm, compiled
    rates = []
    for _ in range(TRIALS if is_timed else 1):
        long_seconds, long_count = timed(lambda: generate(num_tokens + short))
        short_seconds, short_count = timed(lambda: generate(short))
        rates.append((long_count - short_count) / (long_seconds - short_seconds))
    if not is_timed:
        return {"tokens_per_second": None}
    rates.sort()
    return {"tokens_per_second": statistics.median(rates), "low": rates[0], "high": rates[-1]}


def timed(run: Callable[[], int]) -> tuple[float, int]:
    """Seconds, and the result of run()."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    count = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin, count
