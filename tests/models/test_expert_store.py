"""A hit or a miss never changes a result: for every policy, number of slots, order of admissions,
and for copies that come late, wrong or never."""

import errno
import gc
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dspark.checkpoints.deepseek_v4_target import Expert, TargetWeights, read_target
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.checkpoints.mapped_memory import let_go, read_ahead
from dspark.checkpoints.model_folder import ModelFolder
from dspark.hub.tier_plan import popular_share
from dspark.models.deepseek_v4.float_experts import feed_experts
from dspark.models.deepseek_v4.rounded_experts import feed_rounded
from dspark.models.expert_store import PATIENCE, ExpertStore, Policy, checksum, copied, slots_for
from dspark.targets.deepseek_v4_native import DeepseekV4Target
from dspark_kernels.cpu.file_weight import FileWeight
from tests.deepseek_v4_toy import write

FEEDS = {"float": feed_experts, "rounded": feed_rounded}
BLOCKS = [[5, 9, 9, 40], [61], [3, 3, 3, 3, 3], [90, 1, 17], [22, 23], [7, 80, 55, 31, 64, 2]]
Known = tuple[DeepseekV4TargetConfig, TargetWeights]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    path = tmp_path_factory.mktemp("v4")
    write(path)
    folder = ModelFolder(path)
    config = DeepseekV4TargetConfig.from_json(folder.config)
    return config, read_target(folder, config)


def layers_of(known: Known) -> list[tuple[Expert, ...]]:
    return [tuple(block.experts) for block in known[1].blocks]


@torch.inference_mode()
def rounds(known: Known, feed: str, store: ExpertStore | None = None) -> list[torch.Tensor]:
    """Logits of a prompt and of rounds that keep some rows."""
    target = DeepseekV4Target(*known, feed=FEEDS[feed], store=store)
    slot = target.open()
    found = [target.prefill(slot, torch.arange(20)).logits]
    for index, block in enumerate(BLOCKS):
        found.append(target.verify([slot], [torch.tensor(block)]).logits)
        target.commit([slot], [1 + index % len(block)])
        if store is not None:
            settle(store)
    target.close(slot)
    return found


def settle(store: ExpertStore) -> None:
    """Wait for what is being copied, as a slower decode would."""
    for _ in range(200):
        if all(swap.is_right is not None for swap in store._under_way.values()):
            return
        threading.Event().wait(0.002)


@pytest.fixture(scope="module")
def expected(known: Known) -> dict[str, list[torch.Tensor]]:
    return {feed: rounds(known, feed) for feed in FEEDS}


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("policy", ["most used", "last used"])
@pytest.mark.parametrize("slots", [1, 3, 10, 24])
def test_the_text_is_the_same(
    known: Known, expected: dict[str, list[torch.Tensor]], feed: str, policy: Policy, slots: int
) -> None:
    store = ExpertStore(layers_of(known), slots, policy)
    assert same(rounds(known, feed, store), expected[feed])
    assert (store.hits > 0 or slots < 10) and store.failures == 0
    assert store.admitted > 0 and int((~store.far()).sum()) <= slots
    store.close()


def test_the_text_is_the_same_in_any_order_of_admissions(
    known: Known, expected: dict[str, list[torch.Tensor]]
) -> None:
    for seed in range(4):
        store = ExpertStore(layers_of(known), 6)
        generator = torch.Generator().manual_seed(seed)
        store._scores = 100 * torch.rand(24, generator=generator, dtype=torch.float64)
        assert same(rounds(known, "rounded", store), expected["rounded"])
        store.close()


def _wrong(source: Expert, into: Expert) -> None:
    copied(source, into)
    into.down.codes[0, 0] ^= 1


def _short(source: Expert, into: Expert) -> None:
    into.down.codes.zero_()
    into.gate.codes.copy_(source.gate.codes)


def _dies(source: Expert, into: Expert) -> None:
    raise OSError("the disk is gone")


@pytest.mark.parametrize("copy", [_wrong, _short, _dies], ids=["wrong", "short", "dies"])
def test_a_wrong_copy_is_never_used(
    known: Known, expected: dict[str, list[torch.Tensor]], copy
) -> None:
    store = ExpertStore(layers_of(known), 24, copy=copy)
    assert same(rounds(known, "rounded", store), expected["rounded"])
    assert store.failures > 0 and bool(store.far().all()) and store.hits == 0
    store.close()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    opened = threading.Event()
    yield opened
    opened.set()


def test_copies_that_come_late_or_never_are_not_waited_for(
    known: Known, expected: dict[str, list[torch.Tensor]], gate: threading.Event, monkeypatch
) -> None:
    """Nothing is admitted until the gate opens; half written slots are not read."""
    monkeypatch.setattr("tests.models.test_expert_store.settle", lambda store: None)

    def late(source: Expert, into: Expert) -> None:
        into.gate.codes.fill_(255)
        gate.wait()
        copied(source, into)

    store = ExpertStore(layers_of(known), 8, copy=late)
    assert same(rounds(known, "rounded", store), expected["rounded"])
    assert bool(store.far().all())
    gate.set()
    for _ in range(500):
        store.between_passes()
        if not bool(store.far().all()):
            break
        threading.Event().wait(0.002)
    assert same(rounds(known, "rounded", store), expected["rounded"])
    assert not bool(store.far().all())
    store.close()


# -- which experts get slots -----------------------------------------------------------------------


def tiny(count: int) -> tuple[Expert, ...]:
    def weight(value: int) -> FileWeight:
        codes = torch.full((1, 16), value, dtype=torch.uint8)
        return FileWeight("fp4", codes, torch.full((1, 1), 127, dtype=torch.uint8), 1, 32)

    return tuple(Expert(*(weight(n % 251) for _ in range(3))) for n in range(count))


def test_a_tenth_nearby_serves_as_many_choices_as_popularity_says() -> None:
    """Choices drawn by the measured curve: the share that it gives a tenth of the experts is what
    the store counts, once it knows them, and last used serves fewer."""
    count, picks = 256, 6
    masses = [popular_share((n + 1) / count) - popular_share(n / count) for n in range(count)]
    weights = torch.tensor(masses, dtype=torch.float64)[torch.randperm(count)]
    generator = torch.Generator().manual_seed(4)
    draws = torch.multinomial(weights, 1000 * picks, replacement=True, generator=generator)
    hits: dict[Policy, float] = {}
    policies: tuple[Policy, ...] = ("most used", "last used")
    for policy in policies:
        store = ExpertStore([tiny(count)], count // 10, policy)
        for number, chosen in enumerate(draws.view(-1, 1, 1, picks)):
            store.between_passes()
            if number < 500:  # it learns
                settle(store)
                store.hits = store.misses = 0
            store.note(chosen)
        hits[policy] = store.hits / (store.hits + store.misses)
        store.close()
    # distinct experts of a pass are a little less concentrated than choices
    assert hits["most used"] == pytest.approx(popular_share(25 / 256), abs=0.06)
    assert hits["most used"] > hits["last used"] + 0.05


def test_uses_are_kept_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "experts" / "uses.json"
    store = ExpertStore([tiny(8)], 2, path=path)
    for _ in range(5):
        store.note(torch.tensor([[[6, 3]]]))
    store.close()
    again = ExpertStore([tiny(8)], 2, path=path)
    again.between_passes()
    settle(again)
    again.between_passes()
    assert again.far()[0].tolist() == [number not in (3, 6) for number in range(8)]
    again.close()
    for damage in ("", "[1, 2]", "{", '["a"]'):
        path.write_text(damage)
        ExpertStore([tiny(8)], 2, path=path).close()


def test_a_full_disk_keeps_the_uses_of_before(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "uses.json"
    store = ExpertStore([tiny(8)], 2, path=path)
    store.note(torch.tensor([[[6, 3]]]))
    store.save()
    before = path.read_bytes()
    store.note(torch.tensor([[[1, 2]]]))

    def half(part: Path, text: str) -> None:
        part.write_bytes(text.encode()[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        store.close()
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_copy_that_does_not_end_stops_the_others_until_it_does(gate: threading.Event) -> None:
    """After as many passes as it is waited for, and not one earlier."""

    def held(source: Expert, into: Expert) -> None:
        gate.wait()
        copied(source, into)

    store = ExpertStore([tiny(8)], 4, copy=held)
    store.note(torch.tensor([[[0, 1]]]))
    store.between_passes()
    for _ in range(PATIENCE - 1):
        store.between_passes()
    store.note(torch.tensor([[[2]]]))
    store.between_passes()  # the last at which others may begin
    assert store._under_way.keys() == {0, 1, 2}
    store.note(torch.tensor([[[3]]]))
    for _ in range(3):
        store.between_passes()
    assert store._under_way.keys() == {0, 1, 2} and bool(store.far().all())
    gate.set()
    for _ in range(3):
        settle(store)
        store.between_passes()
    assert store.far()[0].tolist() == [False] * 4 + [True] * 4
    store.close()


def test_slots_are_taken_only_where_memory_is_short() -> None:
    """Of 147 GB of experts beside 20 GB: none with 192 GB free, and with 96 GB free three quarters
    of what the rest and two more GB leave."""
    count, size = 11_008, 13_369_344
    weights = count * size + 20 * 10**9
    assert slots_for(192 * 10**9, weights, count, size) == 0
    assert slots_for(96 * 10**9, weights, count, size) == int(74e9 * 0.75) // size
    assert slots_for(16 * 10**9, weights, count, size) == 0


def test_checksums_tell_experts_apart() -> None:
    one, other = tiny(2)
    assert checksum(one) != checksum(other)
    assert checksum(one) == checksum(replace(one))


def test_advice_changes_nothing() -> None:
    tensor = torch.arange(10_000)
    for advise in (read_ahead, let_go):
        assert advise(tensor) in (True, False)
    assert torch.equal(tensor, torch.arange(10_000))


def test_slots_stay_in_memory_as_long_as_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where the system refuses that, it goes on without."""
    locked: list[int] = []
    store_module = "dspark.models.expert_store"
    monkeypatch.setattr(f"{store_module}.lock", lambda memory: not locked.append(memory.data_ptr()))
    monkeypatch.setattr(f"{store_module}.unlock", lambda memory: locked.remove(memory.data_ptr()))
    store = ExpertStore([tiny(8)], 2)
    assert store.is_locked and len(locked) == 1
    store.close()
    assert not locked
    store = ExpertStore([tiny(8)], 2)  # forgotten, not closed
    del store
    gc.collect()
    assert not locked
    monkeypatch.setattr(f"{store_module}.lock", lambda memory: False)
    monkeypatch.setattr(f"{store_module}.unlock", lambda memory: None)
    store = ExpertStore([tiny(8)], 2)
    store.note(torch.zeros(1, 1, 1, dtype=torch.long))
    store.between_passes()
    settle(store)
    store.between_passes()
    assert not store.is_locked and store.admitted == 1
    store.close()
