"""Every kernel against its floor, with weights and caches that come from memory each time."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from dspark_kernels import (
    Filters,
    Races,
    TermWeights,
    accept_block,
    distribution_terms,
    draft_block,
    skinny_linear,
    swiglu,
)
from dspark_kernels.norm import add_rms_norm
from dspark_kernels.norm_rope_write import HeadNorms, norm_rope_write
from dspark_kernels.paged_attention import paged_attention
from dspark_kernels.paged_cache import PAGE, PagedRows
from gpu_parts.check_head import random_head
from gpu_parts.setting import (
    KINDS,
    Record,
    Setting,
    attempt,
    random_pool,
    random_weight,
    rotary_tables,
    rows_at,
    weight_bytes,
)
from gpu_parts.shapes import BLOCK_SIZE, EPS, MARKOV_RANK, ModelShape
from gpu_parts.stopwatch import Arm, Stopwatch, against_floor, copies_for

SMALL_CALLS = 32  # of a kernel that moves next to nothing, in one graph
CUBLAS = "torch F.linear"


def time_skinny(setting: Setting) -> Iterator[Record]:
    """bf16 beside torch's own product, then the other formats."""
    stopwatch = Stopwatch(setting)
    every = [
        (kind, shape, name, size)
        for kind in KINDS
        for shape in setting.shapes
        for name, size in shape.matrices().items()
    ]
    for kind, shape, name, size in setting.cases(every):
        facts = {"kernel": "skinny linear", "shape": f"{shape.name} {name}", "kind": kind}
        attempted = attempt(
            {}, lambda k=kind, s=size, n=name: skinny_arms(setting, stopwatch, k, s, n)
        )
        if "error" in attempted:
            yield facts | attempted
        for (program, rows), timing in attempted.get("arms", {}).items():
            yield facts | {"program": program, "rows": rows} | timing


def skinny_arms(
    setting: Setting, stopwatch: Stopwatch, kind: str, size: tuple[int, int], name: str
) -> Record:
    first = random_weight(kind, size, setting.device)
    num_bytes = weight_bytes(first)
    more = range(copies_for(num_bytes, setting) - 1)
    weights = [first, *(random_weight(kind, size, setting.device) for _ in more)]
    is_gated = name == "gate+up"
    arms: dict[tuple[str, int], Arm] = {}
    for rows in (1, 4) if setting.is_tiny else (1, 4, 8, 16):
        x = torch.randn(rows, size[1], device=setting.device, dtype=torch.bfloat16)

        def ours(x: torch.Tensor = x) -> None:
            for weight in weights:
                skinny_linear(x, weight, gated=is_gated)

        def torch_own(x: torch.Tensor = x) -> None:
            for weight in weights:
                F.linear(x, weight)

        arms["dspark", rows] = Arm(ours, len(weights))
        if kind == "bf16":  # without the activation, which is ours for nothing
            arms[CUBLAS, rows] = Arm(torch_own, len(weights))
    timings = stopwatch.measure(arms)
    return {"arms": {k: against_floor(t, num_bytes, setting) for k, t in timings.items()}}


def time_attention(setting: Setting) -> Iterator[Record]:
    """One row and a verification, over the caches of as many layers as memory traffic needs."""
    stopwatch = Stopwatch(setting)
    shapes = setting.shapes[::2]  # 8B attends as 4B does
    contexts = (300,) if setting.is_tiny else (512, 8192, 32768)
    for context, shape in setting.cases((c, s) for c in contexts for s in shapes):
        num_bytes = shape.cache_bytes(context, 1)
        facts = {"kernel": "attention", "shape": shape.name, "context": context}
        given = (setting, stopwatch, shape, context, num_bytes)
        attempted = attempt({}, lambda g=given: attention_arms(*g))
        if "error" in attempted:
            yield facts | attempted
        for name, timing in attempted.get("arms", {}).items():
            yield facts | {"program": name[0], "rows": name[1]} | timing


def attention_arms(
    setting: Setting, stopwatch: Stopwatch, shape: ModelShape, context: int, num_bytes: int
) -> Record:
    num_layers = copies_for(num_bytes, setting)
    pool, slots = random_pool(num_layers, shape, context, setting)
    scale = shape.head_dim**-0.5
    # the same positions side by side, as torch's attention wants them
    flat = [
        [each[: context // PAGE].transpose(0, 1).flatten(1, 2).contiguous() for each in caches]
        for caches in (pool.layer(i) for i in range(num_layers))
    ]
    arms: dict[tuple[str, int], Arm] = {}
    for count in (1, 8):
        new = {"device": setting.device, "dtype": torch.bfloat16}
        query = torch.randn(count, shape.num_heads, shape.head_dim, **new)
        rows = rows_at(pool, slots, [context - count], [count], causal=True)
        mask = torch.ones(count, context, dtype=torch.bool, device=setting.device).tril(
            context - count
        )

        def ours(query: torch.Tensor = query, rows: PagedRows = rows) -> None:
            for layer in range(num_layers):
                paged_attention(query, *pool.layer(layer), pool.tables, rows, scale)

        def torch_own(
            query: torch.Tensor = query, mask: torch.Tensor | None = mask if count > 1 else None
        ) -> None:
            grouped = query.transpose(0, 1).unsqueeze(0)
            for keys, values in flat:
                F.scaled_dot_product_attention(
                    grouped, keys.unsqueeze(0), values.unsqueeze(0), enable_gqa=True,
                    attn_mask=mask,
                )  # fmt: skip

        arms["dspark", count] = Arm(ours, num_layers)
        if context % PAGE == 0:
            arms["torch SDPA", count] = Arm(torch_own, num_layers)
    timings = stopwatch.measure(arms)
    return {"arms": {k: against_floor(t, num_bytes, setting) for k, t in timings.items()}}


def time_others(setting: Setting) -> Iterator[Record]:
    """Norms and the like, whose floor is a launch; sequential head, acceptance, loss terms."""
    stopwatch = Stopwatch(setting)
    shape = setting.shapes[0]
    for name, make in (
        ("small", small_arms),
        ("sequential head", head_arms),
        ("accept", accept_arms),
        ("loss terms", terms_arms),
    ):
        attempted = attempt({}, lambda m=make: {"arms": m(setting, shape)})
        if "error" in attempted:
            yield {"kernel": name, "shape": shape.name} | attempted
            continue
        arms: dict[str, tuple[Arm, int]] = attempted["arms"]
        timings = stopwatch.measure({key: arm for key, (arm, _) in arms.items()})
        for key, timing in timings.items():
            record = {"kernel": key, "shape": shape.name, "program": "dspark"}
            yield record | against_floor(timing, arms[key][1], setting)


def small_arms(setting: Setting, shape: ModelShape) -> dict[str, tuple[Arm, int]]:
    device, dtype = setting.device, torch.bfloat16
    calls = 1 if setting.is_tiny else SMALL_CALLS
    pool, slots = random_pool(1, shape, 300, setting)
    rotary = rotary_tables(shape, 300, device, dtype)
    weight = torch.ones(shape.hidden_size, device=device, dtype=dtype)
    head_norm = torch.ones(shape.head_dim, device=device, dtype=dtype)
    norms = HeadNorms(head_norm, head_norm, EPS)
    heads = shape.num_heads + 2 * shape.num_kv_heads
    arms: dict[str, tuple[Arm, int]] = {}

    def repeated(run: Callable[[], object]) -> Arm:
        return Arm(lambda: [run() for _ in range(calls)], calls)

    for count in (1, 8):
        x, residual = torch.randn(2, count, shape.hidden_size, device=device).to(dtype)
        qkv = torch.randn(count, heads, shape.head_dim, device=device).to(dtype)
        gate_up = torch.randn(count, 2 * shape.intermediate_size, device=device).to(dtype)
        rows = rows_at(pool, slots, [280], [count], causal=True)
        arms[f"add, norm: {count} rows"] = (
            repeated(lambda x=x, r=residual: add_rms_norm(x, r, weight, EPS)), 4 * x.nbytes
        )  # fmt: skip
        arms[f"norm, rope, write: {count} rows"] = (
            repeated(
                lambda q=qkv, r=rows: norm_rope_write(
                    q, *pool.layer(0), pool.tables, r, rotary, norms
                )
            ),
            2 * qkv.nbytes,
        )
        arms[f"swiglu: {count} rows"] = (
            repeated(lambda g=gate_up: swiglu(g)), gate_up.nbytes * 3 // 2
        )  # fmt: skip
    return arms


def head_arms(setting: Setting, shape: ModelShape) -> dict[str, tuple[Arm, int]]:
    device, slots = setting.device, BLOCK_SIZE
    base = torch.randn(1, slots, shape.vocab_size, device=device).to(torch.bfloat16)
    hidden = torch.randn(1, slots, shape.hidden_size, device=device).to(torch.bfloat16)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    # W2, base logits in, logits in float32 out
    num_bytes = slots * shape.vocab_size * (2 * MARKOV_RANK + 2 + 4)
    arms = {}
    for kind in ("vanilla", "gated", "rnn"):
        head = random_head(kind, shape, device, torch.bfloat16)
        for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            heat = torch.full((1,), temperature, device=device)
            run = lambda h=head, t=heat: draft_block(base, hidden, zero, h, t, zero, zero)  # noqa: E731
            arms[f"sequential head {kind}, {slots} steps, {name}"] = (Arm(run), num_bytes)
    return arms


def accept_arms(setting: Setting, shape: ModelShape) -> dict[str, tuple[Arm, int]]:
    device, slots, size = setting.device, BLOCK_SIZE, shape.vocab_size
    target = (4 * torch.randn(slots + 1, size, device=device)).to(torch.bfloat16)
    draft = target[:slots].float().unsqueeze(0)
    log_sums = draft.logsumexp(-1)
    ids = draft.argmax(-1)
    one = {"device": device, "dtype": torch.int64}
    uniforms = torch.rand(1, slots + 1, device=device)
    arms = {}
    with_draft = target.nbytes + draft.nbytes // slots
    for name, numbers, num_bytes, has_seed in (
        ("greedy", (0.0, 0, 1.0), target.nbytes, False),
        ("sampled", (1.0, 0, 1.0), with_draft, False),
        ("sampled with a seed", (1.0, 0, 1.0), target.nbytes, True),
        ("top-k and top-p", (0.8, 40, 0.9), with_draft, False),
        ("top-k and top-p with a seed", (0.8, 40, 0.9), target.nbytes, True),
    ):
        temperature, top_k, top_p = (torch.tensor([number], device=device) for number in numbers)
        filters = Filters(temperature, top_k.int(), top_p)
        races = Races(torch.tensor([has_seed], device=device), torch.ones(1, **one))
        run = lambda f=filters, r=races: accept_block(  # noqa: E731
            ids, draft, log_sums, target, torch.zeros(1, **one), torch.full((1,), slots, **one), f,
            r, uniforms, torch.zeros(1, **one),
        )  # fmt: skip
        arms[f"accept {slots + 1} rows, {name}"] = (Arm(run), num_bytes)
    return arms


def terms_arms(setting: Setting, shape: ModelShape) -> dict[str, tuple[Arm, int]]:
    """The gradient takes the place of the draft's logits: each call works on what the last left."""
    count = 4 if setting.is_tiny else 1024
    new = {"device": setting.device, "dtype": torch.bfloat16}
    draft = torch.randn(count, shape.vocab_size, **new)
    target = torch.randn(count, shape.vocab_size, **new)
    rows = torch.arange(count, device=setting.device)
    row_weights = torch.ones(count, device=setting.device)
    weights = TermWeights(0.1, 0.9, 0.0)
    run = lambda: distribution_terms(  # noqa: E731
        draft, target, rows, rows % shape.vocab_size, row_weights, weights, draft
    )
    return {f"loss terms, {count} rows": (Arm(run), 2 * draft.nbytes + target.nbytes)}
