"""DeepSeek-V4 on a card: flags, copies, each kernel, a layer at a hit rate that is given, bits, and
layers that stream under a prompt.

Routers with random weights are uniform: neither overlap nor acceptance nor a hit rate is measured
here, so nothing in it is "tokens a second of V4".
"""

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import torch

from dspark.checkpoints.deepseek_v4_target import TargetWeights
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.card_expert_store import NOWHERE, CardExpertStore
from dspark.models.deepseek_v4.cache import RequestCaches
from dspark.models.deepseek_v4.card_experts import CardExperts, ExpertRows
from dspark.models.deepseek_v4.card_layer import FeedRows
from dspark.models.deepseek_v4.card_pass import CardPass
from dspark.models.deepseek_v4.rounded_experts import feed_rounded
from dspark.models.deepseek_v4.streamed_experts import StreamedExperts
from dspark.models.expert_store import expert_bytes
from dspark_kernels.cpu.file_weight import FileTable
from dspark_kernels.deepseek_v4.file_matrix import multiply_rows
from dspark_kernels.deepseek_v4.norm_turn import norm_turn
from dspark_kernels.stream_flags import StreamFlags, ThreadStream, make_flags
from gpu_parts.deepseek_v4_model import (
    SLOTS,
    filled_store,
    open_at,
    put,
    random_experts,
    random_target,
    sizes,
)
from gpu_parts.setting import Record, Setting, attempt
from gpu_parts.stopwatch import Arm, Stopwatch, against_floor

FLAGS = 100
COPIED_EXPERTS = 64
ROWS = (1, 2, 4, 8)
SEGMENTS = (6, 12, 24, 44)
CONTEXTS = (2048, 32768, 131072)
CHUNKS = (2048, 8192)
MISSES = 2  # of the experts of a row
BITS = 24  # passes whose bits are compared
PATIENCE = 20.0


def time_deepseek_v4(setting: Setting) -> Iterator[Record]:
    config, device = sizes(setting), setting.device
    torch.manual_seed(20)
    yield attempt({"kernel": "flags"}, lambda: time_flags(setting))
    stopwatch = Stopwatch(setting, trials=7)
    experts = random_experts(config, device)
    yield attempt({"kernel": "copies of experts"}, partial(time_copies, setting, experts))
    for rows, segments in expert_cases(setting):
        facts = {"kernel": "experts", "rows": rows, "segments": segments}
        given = (setting, stopwatch, config, experts, rows, segments)
        yield attempt(facts, partial(time_experts, *given))
    del experts
    weights = random_target(config, device)
    yield from time_matrices(setting, stopwatch, weights)
    model = _Model(config, weights, setting)
    for context in (40,) if setting.is_tiny else CONTEXTS:
        for rows in (2,) if setting.is_tiny else (1, 8):
            facts = {"kernel": "four layers", "context": context, "rows": rows, "misses": 0}
            yield attempt(facts, partial(time_layers, setting, model, context, rows, 0))
    facts = {"kernel": "four layers", "context": 40, "rows": 1, "misses": MISSES}
    yield attempt(facts, partial(time_layers, setting, model, 40, 1, MISSES))
    yield attempt({"kernel": "bits"}, lambda: check_bits(setting, model))
    for chunk in (5,) if setting.is_tiny else CHUNKS:
        facts = {"kernel": "four layers that stream", "rows": chunk}
        yield attempt(facts, partial(time_stream, setting, model, chunk))


def time_flags(setting: Setting) -> Record:
    """From the stream's question to what follows its wait, a thread of the host between."""
    if setting.device.type == "cuda":
        flags = make_flags(FLAGS, setting.device, PATIENCE)
        close: Callable[[], None] = torch.cuda.synchronize
    else:
        words = torch.zeros(2 * FLAGS, dtype=torch.int32)
        stream = ThreadStream(words, PATIENCE)
        flags, close = StreamFlags(words, stream), stream.close
    answered: list[bool] = []

    def answer() -> None:
        for flag in range(FLAGS):
            answered.append(flags.is_asked(flag, PATIENCE))
            flags.answer(flag)

    def ask() -> None:
        for flag in range(FLAGS):
            flags.ask(flag)
            flags.await_answer(flag)

    worker = threading.Thread(target=answer)
    begin = time.perf_counter()
    worker.start()
    ask()
    worker.join(PATIENCE)
    close()
    took = time.perf_counter() - begin
    us = took / FLAGS * 1e6 if setting.device.type == "cuda" else None
    return {"us": us, "ok": answered == [True] * FLAGS}


def time_copies(setting: Setting, experts: Any) -> Record:
    """Experts from the host's memory into slots, alone and beside products."""
    device, count = setting.device, 2 if setting.is_tiny else COPIED_EXPERTS
    store = CardExpertStore([experts], count, device)
    size, record = expert_bytes(experts[0]) * count, {}
    x = torch.randn(2048, 2048, device=device) if not setting.is_tiny else None

    def copy() -> None:
        for number in range(count):
            store._copy(store._source[number], store._slots[number])

    for name in ("alone", "beside"):
        other = None
        if name == "beside" and x is not None:
            other = torch.cuda.Stream()
            with torch.cuda.stream(other):
                for _ in range(200):
                    torch.mm(x, x)
        begin = time.perf_counter()
        copy()
        took = time.perf_counter() - begin
        if device.type == "cuda":
            torch.cuda.synchronize()
            record[f"gigabytes_per_second_{name}"] = size / took / 1e9
    same = all(
        torch.equal(mine.codes.cpu(), own.codes)
        for mine, own in ((store._slots[n].up, experts[n].up) for n in range(count))
    )
    return record | {"ok": same}


def expert_cases(setting: Setting) -> list[tuple[int, int]]:
    if setting.is_tiny:
        return [(2, 3)]
    return [(rows, segments) for rows in ROWS for segments in SEGMENTS]


def time_experts(
    setting: Setting,
    stopwatch: Stopwatch,
    config: DeepseekV4TargetConfig,
    experts: Any,
    rows: int,
    segments: int,
) -> Record:
    """So many distinct experts, each with so many rows; the bits of the first rows as the host has
    them."""
    device, store = setting.device, CardExpertStore([experts], segments, setting.device)
    for number in range(segments):
        put(store, number, number)
    x = torch.randn(rows * segments, config.hidden_size, device=device)
    route = torch.arange(segments, device=device).repeat_interleave(rows).unsqueeze(1)
    memory = ExpertRows(config, len(x), device, top=1)
    grouped = memory.group(route, store.table[0])

    def run() -> torch.Tensor:
        memory.feed(x, grouped, store.bank, config.swiglu_limit)
        return memory.said

    timing = stopwatch.measure({"experts": Arm(run)})["experts"]
    said = run()[grouped.places.flatten().long()].cpu()
    few = slice(0, 2 * rows)
    expected = feed_rounded(x[few].cpu(), route[few].cpu(), experts, config.swiglu_limit)
    record = against_floor(timing, segments * expert_bytes(experts[0]), setting)
    return record | {"ok": torch.equal(said[few], expected[:, 0]) and "error" not in timing}


def time_matrices(
    setting: Setting, stopwatch: Stopwatch, weights: TargetWeights
) -> Iterator[Record]:
    """Each shape of a layer of CSA, and the output head."""
    matrices = {**weights.blocks[1].matrices, "head.weight": weights.matrices["head.weight"]}
    if setting.is_tiny:
        matrices = {"attn.wkv.weight": matrices["attn.wkv.weight"]}
    for name, weight in matrices.items():
        outputs, columns = weight.shape
        for rows in ROWS[-1:] if setting.is_tiny else ROWS:
            facts = {"kernel": name, "shape": f"{outputs} x {columns}", "rows": rows}
            x = torch.randn(rows, columns, device=setting.device)
            out = torch.empty(rows, outputs, device=setting.device)
            run = partial(multiply_rows, x, weight, out)

            def measured(run: Callable[[], Any] = run, size: int = weight.num_bytes) -> Record:
                timing = stopwatch.measure({"product": Arm(run)})["product"]
                return against_floor(timing, size, setting) | {"ok": "error" not in timing}

            yield attempt(facts, measured)
    wide = torch.randn(8, 4 * weights.blocks[1].matrices["ffn.gate.weight"].shape[1]).to(
        setting.device
    )
    small = {"norm of streams": Arm(partial(norm_turn, wide, torch.empty_like(wide), None, 1e-6))}
    for name, timing in stopwatch.measure(small).items():
        yield {"kernel": name, "rows": 8, "ok": "error" not in timing} | timing


class _Model:
    """Four layers on the card, with a store of slots and one that has every expert there."""

    def __init__(
        self, config: DeepseekV4TargetConfig, weights: TargetWeights, setting: Setting
    ) -> None:
        self.config, self.weights, self.device = config, weights, setting.device
        self.generator = torch.Generator().manual_seed(21)
        self.slots = 3 if setting.is_tiny else SLOTS
        self.store = filled_store(weights, self.slots, setting.device, self.generator)
        self.passing = CardPass(config, weights, (0,), setting.device)
        self.embedding = FileTable(weights.matrices["embed.weight"])
        self.experts = CardExperts(config, self.store, setting.device, PATIENCE)

    def ids(self, count: int) -> torch.Tensor:
        return torch.randint(0, self.config.vocab_size, (count,), generator=self.generator)

    def run(
        self, caches: RequestCaches, stretches: Any, ids: torch.Tensor, feed: FeedRows
    ) -> torch.Tensor:
        embedded = self.embedding[ids].to(self.device)
        hidden, _ = self.passing.run(embedded, ids.tolist(), caches, stretches, feed)
        return hidden


class _InSlots:
    """As many misses a row as are given, whatever the router says: experts are replaced."""

    def __init__(self, model: _Model, misses: int) -> None:
        self._model, self._misses = model, misses
        is_near = model.store.table != NOWHERE
        self._near = [torch.nonzero(each)[:, 0] for each in is_near]
        self._far = [torch.nonzero(~each)[:, 0] for each in is_near]

    @property
    def key(self) -> Hashable | None:
        return (id(self), self._model.experts.key)

    def begin(self, num_rows: int) -> None:
        self._model.experts.begin(num_rows)

    def finish(self) -> None:
        self._model.experts.finish()

    def cancel(self, error: BaseException) -> None:
        self._model.experts.cancel(error)

    def close(self) -> None:
        """Nothing of its own."""

    def __call__(
        self,
        layer: int,
        x: torch.Tensor,
        route: torch.Tensor,
        shares: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        near, far, top = self._near[layer], self._far[layer], route.shape[1]
        places = route[:, :1] + torch.arange(top, device=route.device)  # no expert twice in a row
        kept, misses = near[places % len(near)], min(self._misses, top, len(far))
        kept[:, :misses] = far[places[:, :misses] % len(far)]
        self._model.experts(layer, x, kept.contiguous(), shares, out)


def time_layers(setting: Setting, model: _Model, context: int, rows: int, misses: int) -> Record:
    """A pass of four layers at so many misses a row, launch by launch: the host waits for the
    router in none of them."""
    caches = RequestCaches(model.config, model.device)
    stretches = open_at(caches, context, rows)
    feed, ids = _InSlots(model, misses), model.ids(rows)
    times = []
    for _ in range(1 if setting.is_tiny else 9):
        begin = time.perf_counter()
        hidden = model.run(caches, stretches, ids, feed)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) * 1e6)
    us = sorted(times)[len(times) // 2] if model.device.type == "cuda" else None
    return {"us": us, "ok": bool(hidden.isfinite().all())}


def check_bits(setting: Setting, model: _Model) -> Record:
    """Rows alone and together, while experts move between slots and the host."""
    rows, unequal = (2 if setting.is_tiny else 8), 0
    passes = 1 if setting.is_tiny else BITS
    for _ in range(passes):
        ids = model.ids(rows)
        found = []
        for blocks in ([rows], [1] * rows):
            caches = RequestCaches(model.config, model.device)
            torch.manual_seed(22)
            first = open_at(caches, 17, rows)[0]
            parts, start = [], 0
            for size in blocks:
                end = first.start + start + size
                stretch = first._replace(start=first.start + start, end=end)
                parts.append(model.run(caches, [stretch], ids[start : start + size], model.experts))
                start += size
                move(model)
            found.append(torch.cat(parts))
        unequal += int((found[0] != found[1]).any(1).sum())
    return {"rows_compared": passes * rows, "rows_with_other_bits": unequal, "ok": unequal == 0}


def move(model: _Model) -> None:
    """One expert of each layer out of its slot, another in."""
    store, count = model.store, model.config.num_experts
    for layer in range(model.config.num_layers):
        keys = [key for key in store._slot_of if key // count == layer]
        far = [key for key in range(layer * count, (layer + 1) * count) if key not in keys]
        leaves = keys[int(torch.randint(0, len(keys), (1,), generator=model.generator))]
        comes = far[int(torch.randint(0, len(far), (1,), generator=model.generator))]
        slot = store._slot_of.pop(leaves)
        store._put(leaves, None)
        store._free.append(slot)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        put(store, comes, slot)


def time_stream(setting: Setting, model: _Model, chunk: int) -> Record:
    """A prompt whose layers stream through two buffers."""
    like = model.weights.blocks[0].experts[0]
    stream = StreamedExperts(model.config, like, model.store.at, model.device)
    caches = RequestCaches(model.config, model.device)
    ids, times = model.ids(chunk), []
    for _ in range(1 if setting.is_tiny else 2):
        stretches = open_at(caches, 0, chunk)
        begin = time.perf_counter()
        hidden = model.run(caches, stretches, ids, stream)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) * 1e6)
    stream.close()
    us = times[-1] if model.device.type == "cuda" else None
    size = model.config.num_layers * model.config.num_experts * expert_bytes(like)
    rate = {} if us is None else {"gigabytes_per_second": size / us / 1e3}
    return {"us": us, "bytes": size, "ok": bool(hidden.isfinite().all())} | rate
