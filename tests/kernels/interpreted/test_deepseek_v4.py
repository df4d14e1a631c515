"""DeepSeek-V4 on a card: the bits of the CPU's native program, for its layers and their caches, in
any company, wherever experts lie."""

from collections.abc import Sequence

import pytest
import torch

from dspark.checkpoints.deepseek_v4_target import Expert
from dspark.models.card_expert_store import NOWHERE, CardExpertStore
from dspark.models.deepseek_v4.card_experts import ExpertRows
from dspark.models.deepseek_v4.card_memory import moved
from dspark.models.deepseek_v4.rounded_experts import feed_rounded
from dspark.models.expert_store import copied
from dspark.targets.deepseek_v4_native import DeepseekV4Target, load_deepseek_v4
from dspark_kernels.cpu.exact import fma
from dspark_kernels.cpu.file_weight import FileWeight, file_weight
from dspark_kernels.cpu.float_matrix import multiply_floats_reference
from dspark_kernels.cpu.runtime import current
from dspark_kernels.deepseek_v4 import file_matrix
from dspark_kernels.deepseek_v4.file_matrix import multiply_rows
from dspark_kernels.deepseek_v4.fp4_experts import add_experts
from tests.deepseek_v4_toy import write

TAPS = (0, 2)
IDS = torch.randint(0, 96, (90,), generator=torch.Generator().manual_seed(5))
PROMPTS, BLOCKS = (46, 23), (2, 1)
SMALL = {
    "num_hidden_layers": 3, "compress_ratios": [0, 4, 128, 0, 0, 0], "index_n_heads": 4,
    "dspark_target_layer_ids": [0, 1, 2], "hc_sinkhorn_iters": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> DeepseekV4Target:
    """A layer of each kind; the reference, which runs on the host."""
    if current() is None:
        pytest.skip("no kernels for this processor")
    folder = tmp_path_factory.mktemp("v4")
    write(folder, **SMALL)
    return load_deepseek_v4(folder, tap_layers=TAPS, rounds=True)


def filled(layers: Sequence[Sequence[Expert]], device: torch.device, every: int) -> CardExpertStore:
    """A store that has every so many experts in its slots."""
    store = CardExpertStore(layers, sum(map(len, layers)), device)
    for key in range(0, len(store._source), every):
        copied(store._source[key], store._slots[key])
        store._put(key, key)
    return store


@torch.inference_mode()
def test_a_pass_is_that_of_the_native_program(
    device: torch.device, target: DeepseekV4Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of two requests behind prompts whose caches the host made: hidden states, taps,
    logits, routes, and what the caches have then. Two of three experts are asked of the host. Then
    a row whose layers stream, as those of a long prompt do."""
    for name in ("OUTPUTS", "OUTPUTS_IN_BLOCKS"):  # fewer programs; another test has the real ones
        monkeypatch.setattr(file_matrix, name, 64)
    config, weights = target._decoder._config, target._weights
    store = filled([block.experts for block in weights.blocks], device, every=3)
    card = DeepseekV4Target(config, weights, tap_layers=TAPS, store=store, streams=True)
    slots, copies = ([each.open() for _ in PROMPTS] for each in (target, card))
    for slot, copy, length in zip(slots, copies, PROMPTS, strict=True):
        target.prefill(slot, IDS[:length])
        card.caches.stretches([copy], [length])
        copy.length = length
        card.caches.rings(copy).memory.copy_(target.caches.rings(slot).memory)
    card.pool._buffer.copy_(target.pool._buffer)
    blocks = list(IDS[70 : 70 + sum(BLOCKS)].split(BLOCKS))
    found = card.verify(copies, [block.to(device) for block in blocks])
    expected = target.verify(slots, blocks)
    assert torch.equal(found.logits.cpu(), expected.logits)
    assert torch.equal(found.taps.cpu(), expected.taps)
    assert torch.equal(card._decoder.routes, target._decoder.routes)
    assert store.misses > 0 < store.passes
    for slot, copy, end in zip(slots, copies, (48, 24), strict=True):
        mine, theirs = card.caches.rings(copy), target.caches.rings(slot)
        for layer in range(config.num_layers):
            cells = torch.arange(end - 10, end) % len(mine.of(layer))
            assert torch.equal(mine.of(layer)[cells.to(device)].cpu(), theirs.of(layer)[cells])
        for name in ("compressor", "indexer.compressor"):
            entries = [
                each.caches.entries(1, name)[
                    each.caches.find(one, 1, torch.arange(end // 4, device=each.device))
                ]
                for each, one in ((card, copy), (target, slot))
            ]
            assert torch.equal(entries[0].cpu(), entries[1])
    for each, mine in ((target, slots), (card, copies)):
        each.commit(mine, [2, 1])
    monkeypatch.setattr("dspark.models.deepseek_v4.card_decoder.MAX_ROWS", 0)
    found, expected = (
        each.prefill(one[1], IDS[30:31]) for each, one in ((card, copies), (target, slots))
    )
    assert torch.equal(found.logits.cpu(), expected.logits)
    for slot, copy in zip(slots, copies, strict=True):
        target.close(slot)
        card.close(copy)


def weights_of(device: torch.device) -> list[tuple[FileWeight, FileWeight]]:
    """Of each kind, on the host and on the device; 40 outputs are no whole number of programs."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(40, 64, generator=generator)
    scales = torch.randint(110, 140, (2, 2), generator=generator).to(torch.uint8)
    kinds = (
        file_weight((values * 90).to(torch.float8_e4m3fn), scales, 32, 32),
        file_weight(values.bfloat16()),
        file_weight(values),
    )
    return [(each, moved(each, device)) for each in kinds]


def test_products_are_the_references_in_any_company(device: torch.device) -> None:
    """Nine rows at once, then fewer; the smallest e4m3 codes among them."""
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(4)).mul_(3.0)
    for weight, on_card in weights_of(device):
        expected = multiply_floats_reference(x, weight)
        for first, last in ((0, 9), (3, 4), (5, 7), (1, 5)):
            rows = x[first:last].to(device)
            out = multiply_rows(rows, on_card, torch.empty(len(rows), 40, device=device))
            assert torch.equal(out.cpu(), expected[first:last])


def test_products_of_groups_meet_their_own_columns(device: torch.device) -> None:
    weight, on_card = weights_of(device)[1]
    x = torch.randn(2, 128, generator=torch.Generator().manual_seed(6))
    out = multiply_rows(x.to(device), on_card, torch.empty(2, 40, device=device), groups=2)
    for group in range(2):
        half = slice(20 * group, 20 * group + 20)
        expected = multiply_floats_reference(
            x[:, 64 * group :][:, :64], weight.rows(20 * group, 20 * group + 20)
        )
        assert torch.equal(out[:, half].cpu(), expected)


@torch.inference_mode()
def test_segments_of_1_to_64_rows(device: torch.device, target: DeepseekV4Target) -> None:
    """Expert 0 takes all rows, others few or none; NaN, infinities and zeros go where they belong;
    a sum takes experts in the order of the route."""
    config, block = target._decoder._config, target._weights.blocks[1]
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(64, config.hidden_size, generator=generator)
    x[3], x[5, 7], x[9, 40], x[11] = 0.0, float("nan"), float("inf"), 1e-38
    route = torch.zeros(64, 2, dtype=torch.int64)
    route[:, 1] = torch.tensor([1] * 40 + [2] * 17 + [4] * 6 + [5])
    route[::3] = route[::3].flip(1)
    shares, shared = (
        torch.rand(64, 2, generator=generator),
        torch.randn(x.shape, generator=generator),
    )
    said = feed_rounded(x, route, block.experts, config.swiglu_limit)
    store = filled([block.experts], device, every=1)
    for first, last in ((0, 64), (4, 12), (63, 64)):
        mine, expected = slice(first, last), shared[first:last].clone()
        for place in range(2):
            expected = fma(said[mine, place], shares[mine, place, None], expected)
        rows = ExpertRows(config, last - first, device)
        segments = rows.group(route[mine].to(device), store.table[0])
        rows.feed(x[mine].to(device), segments, store.bank, config.swiglu_limit)
        out = shared[mine].to(device, copy=True)
        add_experts(out, rows.said, segments.places, shares[mine].to(device))
        assert torch.equal(out.cpu().nan_to_num(7.0), expected.nan_to_num(7.0))


def test_segments_list_every_pair_once(device: torch.device) -> None:
    """By expert; those without a slot say so."""
    from dspark_kernels.deepseek_v4.route import empty_segments, group_experts

    route = torch.tensor([[5, 2], [2, 0], [5, 4], [2, 5]])
    slots = torch.tensor([7, 3, NOWHERE, 1, 0, 2], dtype=torch.int32)
    segments = empty_segments(4, 2, 6, device)
    group_experts(route.to(device), slots.to(device), segments)
    words = segments.words.tolist()
    assert words[:4] == [[7, 0, 1, 0], [NOWHERE, 1, 3, 2], [0, 4, 1, 4], [2, 5, 3, 5]]
    assert [word[2] for word in words[4:]] == [0] * (len(words) - 4)
    pairs = segments.places.flatten().tolist()
    assert sorted(pairs) == list(range(8))
    assert segments.pair_rows[segments.places.flatten().long()].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
