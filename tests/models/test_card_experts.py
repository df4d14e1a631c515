"""Slots of a card and questions to the host never change a text; the device is torch on a CPU."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from dspark.checkpoints.deepseek_v4_cache_layout import MAX_ROWS
from dspark.checkpoints.deepseek_v4_target import Expert, TargetWeights, read_target
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.checkpoints.model_folder import ModelFolder
from dspark.errors import MemoryFullError
from dspark.models.card_expert_store import NOWHERE, RESERVE, CardExpertStore, card_plan
from dspark.models.deepseek_v4.card_experts import CardExperts
from dspark.models.deepseek_v4.missed_experts import Question
from dspark.models.deepseek_v4.rounded_experts import feed_rounded
from dspark.models.deepseek_v4.streamed_experts import Find, StreamedExperts
from dspark.models.expert_store import Copy, Policy, copied, expert_tensors
from dspark.targets.deepseek_v4_native import DeepseekV4Target, load_deepseek_v4
from dspark_kernels.stream_flags import CallerStream, FlagTimeout
from tests.deepseek_v4_toy import write

BLOCKS = [[5, 9, 9, 40], [61], [3, 3, 3], [90, 1, 17], [22, 23], [7, 80, 55, 31]]
CPU = torch.device("cpu")
Known = tuple[DeepseekV4TargetConfig, TargetWeights]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    path = tmp_path_factory.mktemp("v4")
    write(
        path, num_hidden_layers=2, compress_ratios=[0, 4, 0, 0, 0], dspark_target_layer_ids=[0, 1]
    )
    folder = ModelFolder(path)
    config = DeepseekV4TargetConfig.from_json(folder.config)
    return config, read_target(folder, config)


class Card:
    """Feeds a target's experts from slots and by questions, as passes on a card do."""

    def __init__(self, known: Known, store: CardExpertStore, patience: float = 5.0) -> None:
        self._config, weights = known
        self._layer_of = {id(block.experts): at for at, block in enumerate(weights.blocks)}
        self.store, self.experts = store, CardExperts(self._config, store, CPU, patience)

    def feed(
        self, x: torch.Tensor, route: torch.Tensor, experts: Sequence[Expert], limit: float
    ) -> torch.Tensor:
        """As FeedExperts."""
        layer = self._layer_of[id(experts)]
        if layer == 0:
            self.store.between_passes()
            self.experts.begin(len(x))
        said, segments = self.experts.tell(layer, x, route.contiguous())
        told = said[segments.places.long()]
        if layer == self._config.num_layers - 1:
            self.experts.finish()
        return told


@torch.inference_mode()
def text(
    known: Known, feed: Callable[..., torch.Tensor], store: CardExpertStore | None = None
) -> list[torch.Tensor]:
    """Logits of a prompt and of rounds that keep some rows."""
    target = DeepseekV4Target(*known, feed=feed)
    slot = target.open()
    found = [target.prefill(slot, torch.arange(20)).logits]
    for index, block in enumerate(BLOCKS):
        found.append(target.verify([slot], [torch.tensor(block)]).logits)
        target.commit([slot], [1 + index % len(block)])
        if store is not None:
            store.note(target._decoder.routes)
    target.close(slot)
    return found


@pytest.fixture(scope="module")
def expected(known: Known) -> list[torch.Tensor]:
    return text(known, feed_rounded)


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Streaming(Card):
    """The same by layers that stream."""

    def __init__(self, known: Known, find: Find) -> None:
        config, weights = known
        self._config = config
        self._layer_of = {id(block.experts): at for at, block in enumerate(weights.blocks)}
        like = weights.blocks[0].experts[0]
        self.experts = StreamedExperts(config, like, find, CPU)
        self.store = store_of(known, 1)


def store_of(
    known: Known, slots: int, policy: Policy = "most used", copy: Copy | None = None
) -> CardExpertStore:
    layers = [tuple(block.experts) for block in known[1].blocks]
    return CardExpertStore(layers, slots, CPU, policy, copy)


def half_and_whole(source: Expert, into: Expert) -> None:
    """Garbage first, while a pass may be under way."""
    for tensor in expert_tensors(into):
        tensor.fill_(77)
    threading.Event().wait(0.003)
    copied(source, into)


def wrong(source: Expert, into: Expert) -> None:
    copied(source, into)
    into.up.codes[0, 0] ^= 1


def raising(source: Expert, into: Expert) -> None:
    raise OSError("read failed")


NEVER = threading.Event()


def never(source: Expert, into: Expert) -> None:
    NEVER.wait(60.0)


@pytest.mark.parametrize("copy", [copied, half_and_whole, wrong, raising, never])
@pytest.mark.parametrize("policy", ["most used", "last used"])
def test_the_text_is_the_same(
    known: Known, expected: list[torch.Tensor], policy: Policy, copy: Copy
) -> None:
    """Slots for a third of the experts, which change between passes and while they run."""
    store = store_of(known, 4, policy, copy)
    card = Card(known, store)
    assert same(text(known, card.feed, store), expected)
    card.experts.close()
    is_good = copy in (copied, half_and_whole)
    while is_good and any(swap.is_right is None for swap in store._under_way.values()):
        threading.Event().wait(0.001)
    store.between_passes()
    assert (store.admitted > 0) == is_good


@pytest.mark.parametrize("gigabytes", [8, 12, 24, 48, 80, 300])
def test_a_card_is_filled_and_not_beyond(gigabytes: int) -> None:
    """V4-Flash: 11,008 experts of 13.37 MB beside 7.8 GB; two layers of them stream where that is
    at most half of what is left."""
    free, kept, size = gigabytes * 10**9, 7_800_000_000, 13_369_344
    plan = card_plan(free, kept, 43, 256, size)
    assert (plan is None) == (gigabytes == 8)
    if plan is None:
        return
    used = kept + plan.slots * size + plan.streams * 2 * 256 * size + RESERVE
    assert used <= free and (plan.slots == 11_008 or free - used < size)
    assert plan.streams == (gigabytes > 24)


def test_loading_fills_a_card_or_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device has no numbers here: what would be where is all that is tested."""
    write(tmp_path)
    free = "dspark.targets.deepseek_v4_native.free_memory"
    monkeypatch.setattr(free, lambda device: RESERVE + 10**7)
    target = load_deepseek_v4(tmp_path, tap_layers=(1, 2, 3), device=torch.device("meta"))
    store = target.expert_store
    assert isinstance(store, CardExpertStore) and store.table.shape == (4, 6)
    assert len(store._slots) == 24 and target.kinds == ("fp4",)
    assert target.device.type == store.bank.memory.device.type == "meta"
    assert target.spec.chunk > MAX_ROWS
    monkeypatch.setattr(free, lambda device: RESERVE)
    with pytest.raises(MemoryFullError, match="GPU's memory does not hold"):
        load_deepseek_v4(tmp_path, tap_layers=(), device=torch.device("meta"))


def test_a_slot_rests_for_a_pass_before_it_is_written_to(known: Known) -> None:
    """The pass that read it may be under way when its expert leaves the table."""
    written: list[int] = []

    def noted(source: Expert, into: Expert) -> None:
        written.append(into.gate.codes.data_ptr())
        copied(source, into)

    store = store_of(known, 1, "last used", noted)
    route = torch.zeros(2, 1, 1, dtype=torch.int64)

    def settle(count: int) -> None:
        while len(written) < count or any(s.is_right is None for s in store._under_way.values()):
            threading.Event().wait(0.001)

    store.note(route)
    store.between_passes()
    settle(1)
    store.between_passes()
    assert store.table.flatten().tolist().count(0) == 1
    store.note(route + 3)
    store.between_passes()  # the expert leaves
    assert (store.table == NOWHERE).all() and len(written) == 1
    store.between_passes()
    settle(2)
    store.between_passes()
    assert store.table.flatten().tolist().count(0) == 1 and len(written) == 2


def test_layers_that_stream_are_the_same(known: Known, expected: list[torch.Tensor]) -> None:
    """A prompt and short passes, some experts from slots, and a source slower than the layers."""
    store, layers = store_of(known, 3), [block.experts for block in known[1].blocks]
    for key in (1, 4, 9):
        copied(store._source[key], store._slots[len(store._slot_of)])
        store._slot_of[key] = len(store._slot_of)

    def slow(layer: int, number: int) -> Expert:
        threading.Event().wait(0.0005)
        return store.at(layer, number)

    assert any(store.at(0, number) is not layers[0][number] for number in range(6))
    streaming = Streaming(known, slow)
    assert same(text(known, streaming.feed), expected)
    streaming.experts.close()


def test_a_stream_that_fails_or_is_cancelled_leaves_nothing_under_way(
    known: Known, expected: list[torch.Tensor]
) -> None:
    layers, breaks = [block.experts for block in known[1].blocks], threading.Event()

    def find(layer: int, number: int) -> Expert:
        if breaks.is_set() and (layer, number) == (1, 2):
            raise OSError("the SSD is gone")
        return layers[layer][number]

    streaming = Streaming(known, find)
    breaks.set()
    with pytest.raises(OSError, match="SSD"):
        text(known, streaming.feed)
    streaming.experts.cancel(OSError())
    breaks.clear()
    streaming.experts.begin(4)
    streaming.experts.cancel(KeyboardInterrupt())
    assert not streaming.experts._filled
    assert same(text(known, streaming.feed), expected)
    streaming.experts.close()


def test_answers_that_fail_or_never_come_end_the_pass(
    known: Known, expected: list[torch.Tensor]
) -> None:
    """Within the patience, by what went wrong. Passes go on once nobody works on the old one."""
    card = Card(known, store_of(known, 4), patience=20.0)
    missed, stream, released = card.experts.missed, card.experts._flags._stream, threading.Event()
    assert isinstance(stream, CallerStream)
    good = missed._answer

    def failing(question: Question, experts: Sequence[Expert]) -> None:
        raise OSError("the SSD is gone")

    def hanging(question: Question, experts: Sequence[Expert]) -> None:
        released.wait(60.0)

    missed._answer = failing
    with pytest.raises(OSError, match="SSD"):
        text(known, card.feed)
    missed._answer = good
    assert same(text(known, card.feed), expected)
    missed._answer, missed._patience, stream._patience = hanging, 0.02, 0.02
    for words in (r"within 0\.02 s", "given up"):
        with pytest.raises(FlagTimeout, match=words):
            text(known, card.feed)
        missed.cancel(FlagTimeout())  # as a pass does that failed
    missed._answer, missed._patience, stream._patience = good, 20.0, 20.0
    released.set()
    assert same(text(known, card.feed), expected)
    card.experts.close()
