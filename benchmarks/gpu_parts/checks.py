"""Every kernel against float64 at the shapes that run, and bit for bit against itself in a batch.

A row's result may depend neither on how many rows a pass has nor on how many requests.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

from dspark.kvcache.page_pool import PagedPool
from dspark_kernels import (
    Filters,
    QuantizedWeight,
    Races,
    SequentialHead,
    TermWeights,
    accept_block,
    distribution_terms,
    draft_block,
    rms_norm,
    skinny_linear,
    swiglu,
)
from dspark_kernels.accept_block import accept_block_reference
from dspark_kernels.norm import add_rms_norm
from dspark_kernels.norm_rope_write import HeadNorms, norm_rope_write
from dspark_kernels.paged_attention import paged_attention
from dspark_kernels.paged_cache import PagedRows, gather_request
from gpu_parts.setting import (
    BOUNDS,
    EXPONENTIAL_BOUND,
    KINDS,
    Record,
    Setting,
    Weight,
    attempt,
    near,
    random_pool,
    random_weight,
    relative_error,
    rotary_tables,
    rows_at,
    verdict,
)
from gpu_parts.shapes import BLOCK_SIZE, MARKOV_RANK, ModelShape

EPS = 1e-6
CHUNK = 16384  # rows of a weight in float64 at a time
DTYPES = (torch.bfloat16, torch.float32)
FILTERS = [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 50, 1.0), (1.3, 0, 0.8), (0.9, 40, 0.6)]


def check_kernels(setting: Setting) -> Iterator[Record]:
    for facts, run in setting.cases(cases(setting)):
        torch.manual_seed(setting.progress.case)
        with poisoned():
            record = attempt(facts, run)
        yield record
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def poisoned() -> Iterator[None]:
    """Elements that a kernel does not write stay NaN, or a number that no check expects."""

    def poison(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def make_poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
            fresh = make(*args, **kwargs)
            return fresh.fill_(float("nan") if fresh.is_floating_point() else 99)

        return make_poisoned

    with (
        patch.object(torch, "empty", poison(torch.empty)),
        patch.object(torch, "empty_like", poison(torch.empty_like)),
        patch.object(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty)),
    ):
        yield


def cases(setting: Setting) -> Iterator[tuple[Record, Callable[[], Record]]]:
    """Names and checks. The slow ones come first, for workers that share them."""
    for shape in setting.shapes:
        for name, size in shape.matrices().items():
            for kind in KINDS:
                for dtype in DTYPES:
                    # float32 is no format of these models: one shape of it shows the path
                    if dtype == torch.float32 and (shape, name) != (setting.shapes[0], "qkv"):
                        continue
                    facts = {"kernel": "skinny linear", "shape": f"{shape.name} {name}"}
                    facts |= {"kind": kind, "dtype": str(dtype).removeprefix("torch.")}
                    is_gated = name == "gate+up"
                    yield (
                        facts,
                        lambda k=kind, s=size, d=dtype, g=is_gated: check_skinny(
                            setting, k, s, d, g
                        ),
                    )
    for shape in setting.shapes:
        for dtype in DTYPES:
            facts = {"shape": shape.name, "dtype": str(dtype).removeprefix("torch.")}
            for context in setting.contexts if setting.is_tiny else (512, 8192, 32768):
                for causal in (True, False):
                    kernel = "attention" if causal else "attention of a block"
                    yield (
                        facts | {"kernel": kernel, "context": context},
                        lambda s=shape, d=dtype, c=context, a=causal: check_attention(
                            setting, s, d, c, a
                        ),
                    )
            for kernel, check in (
                ("norm", check_norm),
                ("norm, rope, write", check_norm_rope_write),
                ("swiglu", check_swiglu),
            ):
                yield facts | {"kernel": kernel}, lambda f=check, s=shape, d=dtype: f(setting, s, d)
    shape = setting.shapes[0]
    for dtype in DTYPES:
        facts = {"shape": shape.name, "dtype": str(dtype).removeprefix("torch.")}
        for kind in ("none", "vanilla", "gated", "rnn"):
            yield (
                facts | {"kernel": f"sequential head {kind}"},
                lambda k=kind, d=dtype: check_head(setting, shape, d, k),
            )
        for kernel, check in (("accept", check_accept), ("loss terms", check_terms)):
            yield facts | {"kernel": kernel}, lambda f=check, d=dtype: f(setting, shape, d)


def row_counts(setting: Setting) -> tuple[int, ...]:
    return (1, 2, 4) if setting.is_tiny else tuple(range(1, 17))


def check_skinny(
    setting: Setting, kind: str, size: tuple[int, int], dtype: torch.dtype, is_gated: bool
) -> Record:
    weight = random_weight(kind, size, setting.device, dtype)
    counts = row_counts(setting)
    most = counts[-1]
    x = torch.randn(4 * most, size[1], device=setting.device).to(dtype)
    result = skinny_linear(x[:most], weight, gated=is_gated)
    expected = in_float64(x[:most], weight)
    if is_gated:
        gate, up = expected.chunk(2, dim=-1)
        expected = F.silu(gate) * up
    same = all(
        torch.equal(skinny_linear(x[:n], weight, gated=is_gated), result[:n]) for n in counts
    )
    alone = all(
        torch.equal(skinny_linear(x[i : i + 1], weight, gated=is_gated), result[i : i + 1])
        for i in range(most)
    )
    more = torch.equal(skinny_linear(x, weight, gated=is_gated)[:most], result)
    return verdict(
        {"out": near(result, expected)},
        rows_1_to_16=same,
        each_row_alone=alone,
        among_64_rows=more,
    )


def in_float64(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    outputs = []
    for begin in range(0, weight.shape[0], CHUNK):
        end = min(begin + CHUNK, weight.shape[0])
        if isinstance(weight, QuantizedWeight):
            values = weight.rows(begin, end).dequantized(torch.float64)
        else:
            values = weight[begin:end].double()
        outputs.append(x.double() @ values.t())
    return torch.cat(outputs, dim=1)


def check_norm(setting: Setting, shape: ModelShape, dtype: torch.dtype) -> Record:
    rows = row_counts(setting)[-1]
    x, residual = torch.randn(2, rows, shape.hidden_size, device=setting.device).to(dtype)
    weight = (1 + 0.1 * torch.randn(shape.hidden_size, device=setting.device)).to(dtype)
    alone = rms_norm(x, weight, EPS)
    out, total = add_rms_norm(x, residual, weight, EPS)
    single = torch.cat([add_rms_norm(x[i : i + 1], residual[i : i + 1], weight, EPS)[0]
                        for i in range(rows)])  # fmt: skip
    return verdict(
        {
            "norm": near(alone, norm_in_float64(x, weight)),
            "sum": near(total, x.double() + residual.double()),
            # of the sum as it was rounded, which is what later layers see
            "norm of the sum": near(out, norm_in_float64(total, weight)),
        },
        each_row_alone=torch.equal(single, out),
    )


def norm_in_float64(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


def check_swiglu(setting: Setting, shape: ModelShape, dtype: torch.dtype) -> Record:
    rows = row_counts(setting)[-1]
    x = torch.randn(rows, 2 * shape.intermediate_size, device=setting.device).to(dtype)
    out = swiglu(x)
    gate, up = x.double().chunk(2, dim=-1)
    single = torch.cat([swiglu(x[i : i + 1]) for i in range(rows)])
    return verdict({"out": near(out, F.silu(gate) * up)}, each_row_alone=torch.equal(single, out))


def check_norm_rope_write(setting: Setting, shape: ModelShape, dtype: torch.dtype) -> Record:
    """Two requests, one across the end of a page."""
    starts, sizes = [250, 3], [9, 5]
    pool, slots = random_pool(1, shape, 300, setting, dtype, num_slots=2)
    rows = rows_at(pool, slots, starts, sizes, causal=True)
    heads = shape.num_heads + 2 * shape.num_kv_heads
    qkv = torch.randn(14, heads, shape.head_dim, device=setting.device).to(dtype)
    weights = (1 + 0.1 * torch.randn(2, shape.head_dim, device=setting.device)).to(dtype)
    norms = HeadNorms(weights[0], weights[1], EPS)
    rotary = rotary_tables(shape, 300, setting.device, dtype)
    before = [gather_request(c, pool.tables[s.index], 300).clone() for c in pool.layer(0)
              for s in slots]  # fmt: skip
    query = norm_rope_write(qkv, *pool.layer(0), pool.tables, rows, rotary, norms)
    after = [gather_request(c, pool.tables[s.index], 300) for c in pool.layer(0) for s in slots]
    spans = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    written, untouched = [], True
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        span = spans[index % 2]
        written.append(new[:, span].transpose(0, 1))
        kept = torch.ones(300, dtype=torch.bool, device=setting.device)
        kept[span] = False
        untouched &= torch.equal(old[:, kept], new[:, kept])
    wanted_query, wanted_key, value = qkv.double().split(
        [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1
    )
    cos, sin = (table.double()[rows.positions()].unsqueeze(1) for table in rotary)
    turned = [
        turn_in_float64(norm_in_float64(each, weight), cos, sin)
        for each, weight in ((wanted_query, weights[0]), (wanted_key, weights[1]))
    ]
    return verdict(
        {
            "query": near(query, turned[0]),
            "key": near(torch.cat(written[:2]), turned[1]),
            "value": (relative_error(torch.cat(written[2:]), value), 0.0),
        },
        other_positions_untouched=untouched,
    )


def turn_in_float64(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def check_attention(
    setting: Setting, shape: ModelShape, dtype: torch.dtype, context: int, causal: bool
) -> Record:
    most = row_counts(setting)[-1]
    num_requests = 2 if setting.is_tiny else 4
    length = context + most
    pool, slots = random_pool(1, shape, length, setting, dtype, num_slots=num_requests)
    starts = [context - 100 * r for r in range(num_requests)]
    sizes = [most - r for r in range(num_requests)]
    total = sum(sizes)
    query = torch.randn(total, shape.num_heads, shape.head_dim, device=setting.device).to(dtype)
    scale = shape.head_dim**-0.5

    def attend(which: list[int], begins: list[int], counts: list[int], x: torch.Tensor):
        rows = rows_at(pool, [slots[r] for r in which], begins, counts, causal=causal)
        return paged_attention(x, *pool.layer(0), pool.tables, rows, scale)

    every = list(range(num_requests))
    result = attend(every, starts, sizes, query)
    rows = rows_at(pool, slots, starts, sizes, causal=causal)
    expected = attention_in_float64(query, pool, rows, scale)
    mine, of_mine = query[:most], result[:most]
    bits = {"one_request_alone": torch.equal(attend([0], [context], [most], mine), of_mine)}
    if causal:
        bits["rows_1_to_16"] = all(
            torch.equal(attend([0], [context], [n], mine[:n]), of_mine[:n])
            for n in row_counts(setting)
        )
        bits["each_row_alone"] = all(
            torch.equal(attend([0], [context + i], [1], mine[i : i + 1]), of_mine[i : i + 1])
            for i in range(most)
        )
    return verdict({"out": near(result, expected)}, **bits)


def attention_in_float64(
    query: torch.Tensor, pool: PagedPool, rows: PagedRows, scale: float
) -> torch.Tensor:
    out = torch.empty(query.shape, dtype=torch.float64, device=query.device)
    row_starts = rows.row_starts.tolist()
    for request, slot in enumerate(rows.slots.tolist()):
        mine = slice(row_starts[request], row_starts[request + 1])
        size, start = mine.stop - mine.start, int(rows.starts[request])
        keys, values = (
            gather_request(cached, pool.tables[slot], start + size).double()
            for cached in pool.layer(0)
        )
        grouped = query[mine].double().unflatten(1, (keys.shape[0], -1))
        scores = torch.einsum("nkgd,kld->nkgl", grouped, keys) * scale
        if rows.causal:
            position = torch.arange(start + size, device=query.device)
            positions = torch.arange(start, start + size, device=query.device)
            hidden = position.view(1, 1, 1, -1) > positions.view(-1, 1, 1, 1)
            scores = scores.masked_fill(hidden, float("-inf"))
        attended = torch.einsum("nkgl,kld->nkgd", scores.softmax(-1), values)
        out[mine] = attended.flatten(1, 2)
    return out.flatten(1)


def check_head(setting: Setting, shape: ModelShape, dtype: torch.dtype, kind: str) -> Record:
    """Step by step in float64, along the tokens that the kernel chose."""
    num_requests, steps = 3, 3 if setting.is_tiny else BLOCK_SIZE
    head = random_head(kind, shape, setting.device, dtype)
    new = {"device": setting.device}
    base = (2 * torch.randn(num_requests, steps, shape.vocab_size, **new)).to(dtype)
    hidden = torch.randn(num_requests, steps, shape.hidden_size, **new).to(dtype)
    anchors = torch.arange(num_requests, **new)
    rest = [
        torch.tensor(numbers, **new) for numbers in ([0.0, 1.0, 0.7], [5, -9, 2**40], [0, 99, 7])
    ]
    drafted = draft_block(base, hidden, anchors, head, *rest)
    previous = torch.cat([anchors.unsqueeze(1), drafted.token_ids[:, :-1]], dim=1)
    logits, confidences = head_in_float64(head, base, hidden, previous)
    scale = rest[0].where(rest[0] > 0, 1.0).double().view(-1, 1, 1)
    sums = (drafted.logits.double() / scale).logsumexp(-1)
    alone = True
    for r in range(num_requests):
        one = [t[r : r + 1] for t in (base, hidden, anchors)]
        single = draft_block(*one, head, *(t[r : r + 1] for t in rest))
        alone &= torch.equal(single.token_ids[0], drafted.token_ids[r])
        alone &= torch.equal(single.logits[0], drafted.logits[r])
    greedy = torch.equal(drafted.token_ids[0], drafted.logits[0].argmax(-1))
    # gates read the hidden state by a product that is rounded to the model's dtype
    reads_hidden = BOUNDS[dtype]
    return verdict(
        {
            "logits": (
                relative_error(drafted.logits, logits),
                BOUNDS[torch.float32] if kind in ("none", "vanilla") else reads_hidden,
            ),
            "log sums": (relative_error(drafted.log_sums, sums), EXPONENTIAL_BOUND),
            "confidence": (relative_error(drafted.confidence_logits, confidences), reads_hidden),
        },
        greedy_is_argmax=greedy,
        each_request_alone=alone,
    )


def random_head(
    kind: str, shape: ModelShape, device: torch.device, dtype: torch.dtype
) -> SequentialHead:
    rank, hidden = MARKOV_RANK if shape.vocab_size > 1000 else 16, shape.hidden_size

    def normal(*size: int) -> torch.Tensor:
        return (torch.randn(size, device=device) * size[-1] ** -0.5).to(dtype)

    has_markov = kind != "none"
    gates = {"gated": (rank, hidden + rank), "rnn": (3 * rank, 2 * rank + hidden)}.get(kind)
    return SequentialHead(
        kind,
        w1=torch.randn(shape.vocab_size, rank, device=device).to(dtype) if has_markov else None,
        w2=normal(shape.vocab_size, rank) if has_markov else None,
        gate_weight=normal(*gates) if gates else None,
        gate_bias=normal(gates[0]) if gates else None,
        confidence_weight=normal(1, hidden + (rank if has_markov else 0)),
        confidence_bias=normal(1),
    )


def head_in_float64(
    head: SequentialHead, base: torch.Tensor, hidden: torch.Tensor, previous: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [R, K, V] and confidence logits [R, K] after the tokens `previous` [R, K]."""
    base, hidden = base.double(), hidden.double()
    confidence_weight = head.confidence_weight[0].double()
    read = hidden
    if head.w1 is not None:
        embedding = head.w1[previous].double()
        features = embedding
        read = torch.cat([hidden, embedding], dim=-1)
        if head.kind == "gated":
            weight, bias = head.gate_weight.double(), head.gate_bias.double()
            features = (read @ weight.t() + bias).sigmoid() * embedding
        elif head.kind == "rnn":
            weight, bias = head.gate_weight.double(), head.gate_bias.double()
            state, chosen_ids = torch.zeros_like(embedding[:, 0]), []
            for k in range(base.shape[1]):
                joint = torch.cat([state, embedding[:, k], hidden[:, k]], dim=-1) @ weight.t()
                gate, candidate, output = (joint + bias).chunk(3, dim=-1)
                gate = gate.sigmoid()
                state = gate * state + (1 - gate) * candidate.tanh()
                chosen_ids.append(output.tanh())
            features = torch.stack(chosen_ids, dim=1)
        # W2 is applied to features in the model's dtype
        base = base + features.to(head.w2.dtype).double() @ head.w2.double().t()
    return base, read @ confidence_weight + head.confidence_bias.double()


def check_accept(setting: Setting, shape: ModelShape, dtype: torch.dtype) -> Record:
    """Tokens, which have no tolerance; peaked logits make a tie at rounding's size unlikely."""
    slots, new, size = BLOCK_SIZE, {"device": setting.device}, shape.vocab_size
    counts = torch.tensor([slots, 0, 3, slots, 1], **new)
    target = 4 * torch.randn(len(FILTERS), slots + 1, size, **new)
    draft = target[:, :-1] + 0.3 * torch.randn(len(FILTERS), slots, size, **new)
    temperature, top_k, top_p = (torch.tensor(c, **new) for c in zip(*FILTERS, strict=True))
    scaled = draft / temperature.where(temperature > 0, 1.0).view(-1, 1, 1)
    ids = torch.stack([rows.softmax(-1).multinomial(1)[:, 0] for rows in scaled])
    ids[0] = target[0, :-1].to(dtype).argmax(-1)
    ids[0, slots - 1] = 1  # refused late
    rows = torch.cat([t[: n + 1] for t, n in zip(target, counts.tolist(), strict=True)]).to(dtype)
    first_rows = (counts + 1).cumsum(0) - counts - 1
    filters = Filters(temperature, top_k.int(), top_p)
    has_seed = torch.arange(len(FILTERS), **new) >= 3
    races = Races(has_seed & (temperature > 0), torch.arange(len(FILTERS), **new) - 2)
    uniforms = torch.rand(len(FILTERS), slots + 1, **new)
    lengths = torch.arange(len(FILTERS), **new)
    log_sums = scaled.logsumexp(-1)
    given = (ids, draft, log_sums, rows, first_rows, counts, filters, races, uniforms, lengths)
    result, expected = accept_block(*given), accept_block_reference(*given)
    same = {
        name: torch.equal(getattr(result, name), getattr(expected, name))
        for name in ("num_accepted", "next_ids", "lengths")
    }
    alone = True
    for r, count in enumerate(counts.tolist()):
        first = int(first_rows[r])
        one = [t[r : r + 1] for t in (ids, draft, log_sums)]
        single = accept_block(
            *one, rows[first : first + count + 1], first_rows[:1], counts[r : r + 1],
            Filters(*(f[r : r + 1] for f in filters)), Races(*(f[r : r + 1] for f in races)),
            uniforms[r : r + 1], lengths[r : r + 1],
        )  # fmt: skip
        alone &= torch.equal(single.next_ids, result.next_ids[r : r + 1])
        alone &= torch.equal(single.num_accepted, result.num_accepted[r : r + 1])
    record = verdict({}, **same, each_request_alone=alone)
    return record | {"num_accepted": result.num_accepted.tolist()}


def check_terms(setting: Setting, shape: ModelShape, dtype: torch.dtype) -> Record:
    num_rows, size, new = 8, shape.vocab_size, {"device": setting.device}
    draft = (3 * torch.randn(num_rows, size, **new)).to(dtype)
    target = (3 * torch.randn(num_rows - 2, size, **new)).to(dtype)
    target_rows = torch.randint(0, num_rows - 2, (num_rows,), **new)
    labels = torch.randint(0, size, (num_rows,), **new)
    row_weights = torch.rand(num_rows, **new) + 0.5
    weights = TermWeights(0.1, 0.9, 0.3)
    kernel_draft, wide_draft = draft.clone(), draft.double()
    probs, target_probs = wide_draft.softmax(-1), target.double().softmax(-1)[target_rows]
    # where both are equal but for rounding, the slope of |p - q| has no sign in float32
    decided = (probs - target_probs).abs() > 1e-4 * probs
    terms = distribution_terms(
        kernel_draft, target.clone(), target_rows, labels, row_weights, weights,
        torch.empty_like(draft),
    )  # fmt: skip
    expected = distribution_terms(
        wide_draft, target.double(), target_rows, labels, row_weights.double(), weights,
        torch.empty_like(wide_draft),
    )  # fmt: skip
    errors = {
        name: (relative_error(getattr(terms, name), getattr(expected, name)), EXPONENTIAL_BOUND)
        for name in ("cross_entropy", "distillation")
    }
    # what is summed up is the distance; where next to nothing is shared, 1 - it keeps few digits
    distances = (1.0 - each.accept_rate for each in (terms, expected))
    errors["distance"] = (relative_error(*distances), EXPONENTIAL_BOUND)
    bound = EXPONENTIAL_BOUND if dtype == torch.float32 else BOUNDS[dtype]
    errors["gradient"] = (relative_error(kernel_draft[decided], wide_draft[decided]), bound)
    return verdict(errors)
