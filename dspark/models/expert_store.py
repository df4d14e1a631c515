"""Where each routed expert is: in a slot of memory of its own, or in its mapped file.

A slot holds the bytes of the file, so a hit or a miss never changes a result. Slots change between
passes only, and copies are made by a thread meanwhile: until one is whole and compared with its
source, the file is read. With slots for few of a layer's experts, those that are used most serve
far more choices than those that were used last, so that is how they are filled.
"""

import hashlib
import json
import queue
import threading
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from dspark.atomic import replacing
from dspark.checkpoints.deepseek_v4_target import Block, Expert, TargetWeights
from dspark.checkpoints.mapped_memory import let_go, lock, read_ahead, unlock
from dspark.checkpoints.model_folder import ModelFolder
from dspark.hub.paths import home
from dspark.machine import free_memory
from dspark_kernels.cpu.file_weight import FileWeight

Policy = Literal["most used", "last used"]
Copy = Callable[[Expert, Expert], None]  # from, into
ALIGNED = 64  # bytes
FORGETS = 1 - 1 / 4096  # of uses, per pass
MARGIN = 1.25  # times the uses of one that would leave, and MARGIN_USES more
MARGIN_USES = 2.0
MOST_SWAPS = 16  # under way at a time
SAVED_EVERY = 256  # passes
PATIENCE = 512  # passes after which a copy that does not end is given up, and all others
RESERVE = 2 * 10**9  # bytes for caches, passes and other programs
OWN_SHARE = 0.75  # of the rest: slots; the system keeps other parts of the files in what is left


def slots_for(free: int, weights: int, count: int, num_bytes: int) -> int:
    """How many slots help: none where free memory holds all `weights`, `count` experts of
    `num_bytes` among them."""
    left = free - RESERVE - (weights - count * num_bytes)
    return 0 if left >= count * num_bytes else max(0, int(left * OWN_SHARE) // num_bytes)


class LayerExperts(Sequence[Expert]):
    """A layer's experts where they are at present."""

    def __init__(self, store: "ExpertStore", layer: int, far: Sequence[Expert]) -> None:
        self._store, self._layer, self._far = store, layer, far
        self._now = list(far)
        self.addresses = addresses(far)

    def __len__(self) -> int:
        return len(self._now)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        return self._now[number]

    def put(self, number: int, expert: Expert | None) -> None:
        """Into use; None: what the file has."""
        self._now[number] = self._far[number] if expert is None else expert
        self.addresses[number] = addresses([self._now[number]])[0]

    def read_ahead(self, route: torch.Tensor) -> None:
        """route [N, k]: of what is chosen and in no slot."""
        for number in route.unique().tolist():
            if self._now[number] is self._far[number]:
                read_ahead(*expert_tensors(self._far[number]))


@dataclass(slots=True)
class _Swap:
    key: int
    slot: int
    passes: int = 0
    is_right: bool | None = None  # None: under way


class ExpertStore:
    """`hits` and `misses`: distinct experts of passes; `admitted`: copies taken over; `failures`:
    those that were not what the file has, or could not be made; such an expert stays there.
    `is_locked`: the system may not move slots to the disk."""

    is_on_card = False  # its slots

    @torch.inference_mode(False)
    def __init__(
        self,
        layers: Sequence[Sequence[Expert]],
        num_slots: int,
        policy: Policy = "most used",
        copy: Copy | None = None,
        path: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._source = [expert for layer in layers for expert in layer]
        self._per_layer, self._policy, self._path = len(layers[0]), policy, path
        self.layers = tuple(LayerExperts(self, n, layer) for n, layer in enumerate(layers))
        self.hits = self.misses = self.admitted = self.failures = self.passes = 0
        self.num_slots = num_slots
        size = (num_slots, expert_bytes(self._source[0]))
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        is_host = self._memory.device.type == "cpu"
        self.is_locked = not is_host or lock(self._memory)
        self._unlock = weakref.finalize(self, unlock, self._memory) if is_host else None
        self._slots = slots_of(self._memory, self._source[0])
        self._slot_of: dict[int, int] = {}
        self._free, self._refused = list(range(num_slots)), set[int]()
        self._under_way: dict[int, _Swap] = {}
        self._scores = torch.zeros(len(self._source), dtype=torch.float64)
        self._copy, self._jobs = copy or copied, queue.SimpleQueue[_Swap | None]()
        self._worker: threading.Thread | None = None
        self._load()

    def at(self, layer: int, number: int) -> Expert:
        """An expert where it is at present."""
        key = layer * self._per_layer + number
        slot = self._slot_of.get(key)
        return self._source[key] if slot is None else self._slots[slot]

    def far(self) -> torch.Tensor:
        """bool [L, E]: in no slot."""
        far = torch.ones(len(self._source), dtype=torch.bool)
        far[list(self._slot_of)] = False
        return far.view(len(self.layers), self._per_layer)

    @property
    def num_experts(self) -> int:
        return len(self._source)

    def path_beside(self, name: str) -> Path | None:
        """Of the uses of another store of the same files."""
        return self._path and self._path.with_name(f"{self._path.stem}-{name}.json")

    def note(self, routes: torch.Tensor) -> None:
        """Of a finished pass, int64 [L, N, k]."""
        self.passes += 1
        keys = routes + self._per_layer * torch.arange(len(routes)).view(-1, 1, 1)
        used, times = keys.flatten().unique(return_counts=True)
        near = sum(key in self._slot_of for key in used.tolist())
        self.hits, self.misses = self.hits + near, self.misses + len(used) - near
        if self._policy == "most used":
            self._scores *= FORGETS
            self._scores[used] += times
        else:
            self._scores[used] = float(self.passes)
        if self.passes % SAVED_EVERY == 0:
            self.save()

    def between_passes(self) -> None:
        """Take over what was copied, and begin what the policy wants."""
        is_stuck = False
        for swap in list(self._under_way.values()):
            swap.passes += 1
            is_stuck = is_stuck or swap.passes > PATIENCE
            if swap.is_right is not None:
                self._settle(swap)
        if not is_stuck:
            for key in self._wanted():
                self._begin(key)

    def close(self) -> None:
        self.save()
        self._jobs.put(None)
        if self._unlock is not None:
            self._unlock()

    def save(self) -> None:
        """Uses, so that the next process begins with the same slots."""
        if self._path is None or self._policy != "most used":
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as part:
                part.write_text(json.dumps([round(each, 2) for each in self._scores.tolist()]))

    def _load(self) -> None:
        if self._path is None or self._policy != "most used":
            return
        with suppress(OSError, ValueError, TypeError):
            scores = torch.tensor(json.loads(self._path.read_text()), dtype=torch.float64)
            if scores.shape == self._scores.shape and bool(scores.isfinite().all()):
                self._scores = scores

    def _wanted(self) -> Iterator[int]:
        """Experts that deserve a slot; one is free for each when it is taken."""
        scores, busy = self._scores, {*self._slot_of, *self._under_way, *self._refused}
        room = min(MOST_SWAPS, len(self._slots)) - len(self._under_way) - self._num_resting()
        for key in scores.argsort(descending=True, stable=True).tolist():
            if room <= 0 or scores[key] <= 0:
                return
            if key in busy:
                continue
            if not self._free and not self._make_room(float(scores[key])):
                return
            room -= 1
            if self._free:  # what has just been vacated may have to rest first
                yield key

    def _make_room(self, score: float) -> bool:
        """By the resident with the lowest score, if it is clearly lower."""
        if not self._slot_of:
            return False
        lowest = min(self._slot_of, key=lambda key: float(self._scores[key]))
        bar = float(self._scores[lowest])
        bar = MARGIN * bar + MARGIN_USES if self._policy == "most used" else bar
        if score <= bar:
            return False
        self._put(lowest, None)
        self._vacate(self._slot_of.pop(lowest))
        return True

    def _begin(self, key: int) -> None:
        self._under_way[key] = swap = _Swap(key, self._free.pop())
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, daemon=True, name="experts")
            self._worker.start()
        self._jobs.put(swap)

    def _work(self) -> None:
        while (swap := self._jobs.get()) is not None:
            source, slot = self._source[swap.key], self._slots[swap.slot]
            try:
                self._copy(source, slot)
                swap.is_right = checksum(source) == checksum(slot)
            except Exception:  # whatever a copy dies of, the file still has the expert
                swap.is_right = False

    def _settle(self, swap: _Swap) -> None:
        del self._under_way[swap.key]
        if not swap.is_right:
            self.failures += 1
            self._refused.add(swap.key)
            self._free.append(swap.slot)
            return
        self.admitted += 1
        self._slot_of[swap.key] = swap.slot
        self._put(swap.key, swap.slot)
        let_go(*expert_tensors(self._source[swap.key]))

    def _put(self, key: int, slot: int | None) -> None:
        """Into use; None: what the file has."""
        expert = None if slot is None else self._slots[slot]
        self.layers[key // self._per_layer].put(key % self._per_layer, expert)

    def _vacate(self, slot: int) -> None:
        self._free.append(slot)

    def _num_resting(self) -> int:
        """Slots that are neither in use nor free."""
        return 0


def store_beside(store: ExpertStore, layers: Sequence[Sequence[Expert]]) -> ExpertStore | None:
    """Of other layers with experts of the same size: slots in the same proportion, None for none
    or where memory does not suffice."""
    count = len(layers) * len(layers[0])
    try:
        slots = store.num_slots * count // store.num_experts
        return ExpertStore(layers, slots, path=store.path_beside("draft")) if slots else None
    except (RuntimeError, MemoryError):  # the files have everything
        return None


def with_store(weights: TargetWeights, store: ExpertStore) -> TargetWeights:
    """The same weights, their routed experts from the store of their layers."""
    blocks: Iterable[tuple[Block, LayerExperts]] = zip(weights.blocks, store.layers, strict=True)
    return replace(weights, blocks=tuple(replace(b, experts=layer) for b, layer in blocks))


def addresses(experts: Sequence[Expert]) -> torch.Tensor:
    """int64 [E, 6], as the native program reads them: codes and scales of gate, up and down; 0 for
    scales where there are none."""
    if isinstance(experts, LayerExperts):
        return experts.addresses
    return torch.tensor([_addresses(expert) for expert in experts])


def store_for(folder: ModelFolder, weights: TargetWeights, others: int = 0) -> ExpertStore | None:
    """None where free memory holds all weights: the system keeps the files there by itself.
    `others`: experts of the folder that get their part of the slots in a store of their own."""
    layers = [block.experts for block in weights.blocks]
    first = layers[0][0]
    size = sum(each.num_bytes for each in (first.gate, first.up, first.down))
    of_files = sum(entry.num_bytes for _, entry in folder.entries())
    count = len(layers) * len(layers[0])
    together = count + others
    slots = slots_for(free_memory("cpu"), of_files, together, size) * count // together
    if not slots:
        return None
    try:
        return ExpertStore(layers, slots, path=uses_of(folder))
    except (RuntimeError, MemoryError):  # memory went elsewhere; the files have everything
        return None


def uses_of(folder: ModelFolder) -> Path:
    """Where it is remembered which experts of a folder are used most."""
    name = hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:16]
    return home() / "experts" / f"{name}.json"


def copied(source: Expert, into: Expert) -> None:
    """Read ahead, then byte by byte."""
    read_ahead(*expert_tensors(source))
    for mine, own in zip(expert_tensors(into), expert_tensors(source), strict=True):
        mine.copy_(own)


def checksum(expert: Expert) -> int:
    found = 0
    for tensor in expert_tensors(expert):
        found = zlib.crc32(tensor.cpu().contiguous().numpy().data, found)
    return found


def _addresses(expert: Expert) -> list[int]:
    weights = (expert.gate, expert.up, expert.down)
    both = [each for weight in weights for each in (weight.codes, weight.scales)]
    return [0 if each is None else each.data_ptr() for each in both]


def expert_tensors(expert: Expert) -> list[torch.Tensor]:
    weights = (expert.gate, expert.up, expert.down)
    both = [each for weight in weights for each in (weight.codes, weight.scales)]
    return [each for each in both if each is not None]


def expert_bytes(like: Expert) -> int:
    """Of a slot."""
    return sum(padded(each.nbytes) for each in expert_tensors(like))


def slots_of(memory: torch.Tensor, like: Expert) -> list[Expert]:
    """memory uint8 [slots, bytes]: each row as an expert."""
    return [_slot(row, like) for row in memory]


def _slot(row: torch.Tensor, like: Expert) -> Expert:
    """A row of bytes as an expert of the same shapes."""
    start = 0

    def part(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal start
        begin, start = start, start + padded(tensor.nbytes)
        return row[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    def weight(of: FileWeight) -> FileWeight:
        codes = part(of.codes)  # in the order of expert_tensors, as a card's kernels read it
        scales = None if of.scales is None else part(of.scales)
        return replace(of, codes=codes, scales=scales)

    return Expert(weight(like.gate), weight(like.up), weight(like.down))


def padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
