"""The DeepSeek-V4 drafter against the same head written out plainly, in float32. Seconds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.checkpoints.deepseek_v4 import read_own_config, read_own_head
from dspark.drafters.deepseek_v4 import DeepseekV4Drafter, DeepseekV4Slot
from dspark.drafters.deepseek_v4_native import NativeDeepseekV4Drafter
from dspark.drafters.head_drafter import TargetTables
from dspark.drafters.kinds import load_head
from dspark.errors import PairMismatchError
from dspark.models.deepseek_v4.window_attention import fake_quantize_e4m3
from dspark.models.expert_store import ExpertStore
from dspark.targets.deepseek_v4_native import load_deepseek_v4
from dspark_kernels import QuantizedWeight
from dspark_kernels.cpu.file_weight import FileWeight
from dspark_kernels.cpu.runtime import Op, current
from tests.deepseek_v4_toy import CONFIG, STAGES, write

CPU = torch.device("cpu")
HIDDEN, WINDOW, BLOCK = (CONFIG[k] for k in ("hidden_size", "sliding_window", "dspark_block_size"))
HEADS, HEAD_DIM, ROPE = (CONFIG[k] for k in ("num_attention_heads", "head_dim", "qk_rope_head_dim"))
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # sums of a few hundred float32 products in another order


class Greedy:
    def choose(
        self, logits: torch.Tensor, token_ids: object = None
    ) -> tuple[torch.Tensor, Sequence[None]]:
        self.seen = [*getattr(self, "seen", []), logits]
        return logits.argmax(-1), [None] * len(logits)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("v4")
    return folder, write(folder)


@pytest.fixture(scope="module")
def in_torch(toy: tuple[Path, dict[str, torch.Tensor]]) -> DeepseekV4Drafter:
    folder, meaning = toy
    config, weights = read_own_head(folder, device=CPU, dtype=torch.float32)
    head = torch.nn.Linear(HIDDEN, CONFIG["vocab_size"], bias=False)
    head.weight = torch.nn.Parameter(meaning["head.weight"], requires_grad=False)
    return DeepseekV4Drafter(config, weights, meaning["embed.weight"], head)


@pytest.fixture(scope="module")
def native(toy: tuple[Path, dict[str, torch.Tensor]]) -> NativeDeepseekV4Drafter:
    return native_of(toy[0])


def native_of(folder: Path, **changes: Any) -> NativeDeepseekV4Drafter:
    target = load_deepseek_v4(folder, tap_layers=())
    tables = TargetTables(target.embedding(), target.output_head(), CPU, torch.float32, **changes)
    found = load_head(folder, read_own_config(folder), tables, "auto")
    if not isinstance(found, NativeDeepseekV4Drafter):
        pytest.skip("no kernels for this processor")
    return found


@pytest.fixture(scope="module", params=["torch", "native"])
def drafter(
    request: pytest.FixtureRequest,
) -> DeepseekV4Drafter | NativeDeepseekV4Drafter:
    return request.getfixturevalue({"torch": "in_torch"}.get(request.param, request.param))


def taps_of(length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, 3 * HIDDEN, generator=generator)


def filled(drafter: DeepseekV4Drafter, taps: torch.Tensor, *sizes: int) -> DeepseekV4Slot:
    """A request that has taken up `taps` in pieces of these sizes."""
    slot = drafter.open()
    for part in taps.split(list(sizes) or len(taps)):
        drafter.extend([slot], [torch.zeros(len(part), dtype=torch.long)], [part])
    return slot


# The head once more: one request, one row or head at a time, complex numbers for the rotation,
# every expert de-quantised.


def rms(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean() + 1e-6).sqrt()


def turn(x: torch.Tensor, position: int) -> torch.Tensor:
    pairs = torch.view_as_complex(x[-ROPE:].reshape(-1, 2).double())
    angle = position * 10000.0 ** (-torch.arange(ROPE // 2).double() / (ROPE // 2))
    turned = torch.view_as_real(pairs * torch.exp(1j * angle)).flatten().float()
    return torch.cat([x[:-ROPE], turned])


def key_of(x: torch.Tensor, weights: dict[str, torch.Tensor], position: int) -> torch.Tensor:
    key = turn(rms(weights["attn.wkv.weight"] @ x) * weights["attn.kv_norm.weight"], position)
    for start in range(0, HEAD_DIM - ROPE, 64):
        run = key[start : start + 64]
        scale = 2.0 ** float(torch.log2(run.abs().max() / 448.0).ceil())
        key[start : start + 64] = (run / scale).to(torch.float8_e4m3fn).float() * scale
    return key


def attention(
    rows: torch.Tensor, weights: dict[str, torch.Tensor], window: torch.Tensor, start: int
) -> torch.Tensor:
    block = [key_of(row, weights, start + i) for i, row in enumerate(rows)]
    keys = torch.cat([window, torch.stack(block)])
    out = []
    for i, row in enumerate(rows):
        low = rms(weights["attn.wq_a.weight"] @ row) * weights["attn.q_norm.weight"]
        queries = (weights["attn.wq_b.weight"] @ low).view(HEADS, HEAD_DIM)
        heads = []
        for head in range(HEADS):
            query = turn(rms(queries[head]), start + i)
            powers = (keys @ query * HEAD_DIM**-0.5).exp()
            total = powers.sum() + weights["attn.attn_sink"][head].exp()
            heads.append(turn(powers @ keys / total, -start - i))
        groups = torch.cat(heads).chunk(CONFIG["o_groups"])
        matrices = weights["attn.wo_a.weight"].chunk(CONFIG["o_groups"])
        low = torch.cat([m @ group for m, group in zip(matrices, groups, strict=True)])
        out.append(weights["attn.wo_b.weight"] @ low)
    return torch.stack(out)


def feed(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    gate, down, up = (weights[f"ffn.{name}.{w}.weight"] for w in ("w1", "w2", "w3"))
    limit = CONFIG["swiglu_limit"]
    gated = (gate @ x).clamp(max=limit)
    return down @ (gated * gated.sigmoid() * (up @ x).clamp(-limit, limit))


def experts(x: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    scores = (1.0 + (weights["ffn.gate.weight"] @ x).exp()).log().sqrt()
    best = sorted(range(len(scores)), key=lambda e: -float(scores[e] + weights["ffn.gate.bias"][e]))
    chosen = best[: CONFIG["num_experts_per_tok"]]
    total = sum(float(scores[e]) for e in chosen)
    out = feed(x, weights, "shared_experts")
    for expert in chosen:
        share = CONFIG["routed_scaling_factor"] * scores[expert] / total
        out = out + share * feed(x, weights, f"experts.{expert}")
    return out


def mixer(
    streams: torch.Tensor, weights: dict[str, torch.Tensor], name: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One row's streams [4, H] -> input [H], post [4], mix [4, 4]."""
    z = weights[f"{name}_fn"] @ rms(streams.flatten())
    scale, base = weights[f"{name}_scale"], weights[f"{name}_base"]
    pre = (z[:4] * scale[0] + base[:4]).sigmoid() + 1e-6
    post = 2.0 * (z[4:8] * scale[1] + base[4:8]).sigmoid()
    mix = (z[8:] * scale[2] + base[8:]).view(4, 4).softmax(1) + 1e-6
    for step in range(CONFIG["hc_sinkhorn_iters"]):
        if step:
            mix = mix / (mix.sum(1, keepdim=True) + 1e-6)
        mix = mix / (mix.sum(0, keepdim=True) + 1e-6)
    return pre @ streams, post, mix


def sublayer(
    streams: torch.Tensor, weights: dict[str, torch.Tensor], name: str, run
) -> torch.Tensor:
    """streams [K, 4, H]; run maps the rows' normed inputs [K, H] to outputs."""
    parts = [mixer(row, weights, f"hc_{name}") for row in streams]
    outs = run(torch.stack([rms(x) * weights[f"{name}_norm.weight"] for x, _, _ in parts]))
    return torch.stack(
        [
            torch.stack([post[s] * out + mix[:, s] @ row for s in range(4)])
            for row, out, (_, post, mix) in zip(streams, outs, parts, strict=True)
        ]
    )


def reference(
    meaning: dict[str, torch.Tensor], taps: torch.Tensor, anchor: int
) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Drafts, logits [K, V] and confidences [K] after all of `taps`."""
    start, first = len(taps), max(0, len(taps) - WINDOW)
    features = [
        rms(meaning["mtp.0.main_proj.weight"] @ tap) * meaning["mtp.0.main_norm.weight"]
        for tap in taps[first:]
    ]
    ids = [anchor] + [CONFIG["dspark_noise_token_id"]] * (BLOCK - 1)
    streams = meaning["embed.weight"][ids].unsqueeze(1).repeat(1, 4, 1)
    for stage in range(STAGES):
        own = {
            n.removeprefix(f"mtp.{stage}."): t for n, t in meaning.items() if f"mtp.{stage}." in n
        }
        keys = [key_of(x, own, first + i) for i, x in enumerate(features)]
        window = torch.stack(keys) if keys else torch.empty(0, HEAD_DIM)
        streams = sublayer(
            streams, own, "attn", lambda x, o=own, w=window: attention(x, o, w, start)
        )
        streams = sublayer(
            streams, own, "ffn", lambda x, o=own: torch.stack([experts(row, o) for row in x])
        )
    drafts, logits, confidences, previous = [], [], [], anchor
    for row in streams:
        pre = own["hc_head_fn"] @ rms(row.flatten()) * own["hc_head_scale"] + own["hc_head_base"]
        hidden = (pre.sigmoid() + 1e-6) @ row
        embedding = own["markov_head.markov_w1.weight"][previous]
        base = meaning["head.weight"] @ (rms(hidden) * own["norm.weight"])
        logits.append(base + own["markov_head.markov_w2.weight"] @ embedding)
        features_of_both = torch.cat([hidden, embedding])
        confidences.append((own["confidence_head.proj.weight"][0] @ features_of_both).sigmoid())
        previous = int(logits[-1].argmax())
        drafts.append(previous)
    return drafts, torch.stack(logits), torch.stack(confidences)


@pytest.mark.parametrize("length", [0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 2])
def test_a_block_is_that_of_the_plain_reference(
    drafter: DeepseekV4Drafter, toy: tuple[Path, dict[str, torch.Tensor]], length: int
) -> None:
    taps, anchor, chooser = taps_of(length), 17 + length, Greedy()
    slot = filled(drafter, taps) if length else drafter.open()
    proposals = drafter.propose([slot], torch.tensor([anchor]), chooser)
    drafts, logits, confidences = reference(toy[1], taps, anchor)
    assert proposals.token_ids[0].tolist() == drafts
    torch.testing.assert_close(torch.cat(chooser.seen), logits, **CLOSE)
    torch.testing.assert_close(proposals.confidences[0], confidences, **CLOSE)


def test_the_confidences_tell_slots_apart(drafter: DeepseekV4Drafter) -> None:
    """Else the comparison above would prove little."""
    slot = filled(drafter, taps_of(20))
    proposals = drafter.propose([slot], torch.tensor([5]), Greedy())
    assert len(set(proposals.token_ids[0].tolist())) > 1
    assert float(proposals.confidences.std()) > 0.01


def test_however_the_context_comes_the_block_is_the_same(drafter: DeepseekV4Drafter) -> None:
    taps, anchor = taps_of(21), torch.tensor([3])
    whole, pieces = Greedy(), Greedy()
    drafter.propose([filled(drafter, taps)], anchor, whole)
    drafter.propose([filled(drafter, taps, 1, 11, 2, 6, 1)], anchor, pieces)
    torch.testing.assert_close(torch.cat(whole.seen), torch.cat(pieces.seen), **CLOSE)


def test_proposing_leaves_the_request_as_it_was(drafter: DeepseekV4Drafter) -> None:
    slot, first, second = filled(drafter, taps_of(12)), Greedy(), Greedy()
    drafter.propose([slot], torch.tensor([3]), first)
    drafter.propose([slot], torch.tensor([3]), second)
    assert torch.equal(torch.cat(first.seen), torch.cat(second.seen))


def test_truncated_within_the_window_it_is_as_if_the_rest_had_never_come(
    drafter: DeepseekV4Drafter,
) -> None:
    taps, fresh, cut = taps_of(7), Greedy(), Greedy()
    slot = filled(drafter, taps)
    drafter.truncate(slot, 4)
    drafter.propose([filled(drafter, taps[:4])], torch.tensor([9]), fresh)
    drafter.propose([slot], torch.tensor([9]), cut)
    torch.testing.assert_close(torch.cat(fresh.seen), torch.cat(cut.seen), **CLOSE)
    drafter.truncate(slot, 10)  # nothing to forget
    assert slot.length == 4


def test_company_of_any_length_changes_nothing(drafter: DeepseekV4Drafter) -> None:
    lengths, anchors = (0, 3, 19), torch.tensor([4, 5, 6])
    slots = [filled(drafter, taps_of(n, n)) if n else drafter.open() for n in lengths]
    together = drafter.propose(slots, anchors, Greedy())
    for i, slot in enumerate(slots):
        alone = drafter.propose([slot], anchors[i : i + 1], Greedy())
        assert torch.equal(alone.token_ids[0], together.token_ids[i])
        torch.testing.assert_close(alone.confidences[0], together.confidences[i], **CLOSE)


def test_only_the_experts_of_the_block_are_unpacked(
    in_torch: DeepseekV4Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked: list[QuantizedWeight] = []
    original = QuantizedWeight.dequantized
    monkeypatch.setattr(
        QuantizedWeight,
        "dequantized",
        lambda self, dtype: unpacked.append(self) or original(self, dtype),
    )
    slot = filled(in_torch, taps_of(4))
    in_torch.propose([slot], torch.tensor([3]), Greedy())
    most = STAGES * 3 * min(CONFIG["n_routed_experts"], BLOCK * CONFIG["num_experts_per_tok"])
    assert 0 < len(unpacked) <= most


def test_in_bfloat16_the_logits_are_near_those_of_float32(
    in_torch: DeepseekV4Drafter, toy: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    folder, meaning = toy
    config, weights = read_own_head(folder, device=CPU, dtype=torch.bfloat16)
    head = torch.nn.Linear(HIDDEN, CONFIG["vocab_size"], bias=False, dtype=torch.bfloat16)
    head.weight = torch.nn.Parameter(meaning["head.weight"].bfloat16(), requires_grad=False)
    rounded = DeepseekV4Drafter(config, weights, meaning["embed.weight"].bfloat16(), head)
    taps, exact, near = taps_of(20), Greedy(), Greedy()
    in_torch.propose([filled(in_torch, taps)], torch.tensor([3]), exact)
    rounded.propose([filled(rounded, taps.bfloat16())], torch.tensor([3]), near)
    distance = (near.seen[0] - exact.seen[0]).norm() / exact.seen[0].norm()
    assert float(distance) < 0.1


def test_another_target_is_refused(drafter: DeepseekV4Drafter) -> None:
    with pytest.raises(PairMismatchError, match="lies in a target"):
        drafter.config.check_target(vocab_size=96, hidden_size=64, num_layers=5)


def test_experts_in_their_mapped_file_draft_the_same(
    in_torch: DeepseekV4Drafter, toy: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    folder, meaning = toy
    config, weights = read_own_head(folder, device=CPU, dtype=torch.float32, maps_experts=True)
    assert all(isinstance(each, FileWeight) for stage in weights.experts for each in stage["w2"])
    mapped = DeepseekV4Drafter(config, weights, meaning["embed.weight"], in_torch._output_head)
    anchors, found = torch.tensor([5]), []
    for each in (in_torch, mapped):
        chooser = Greedy()
        each.propose([filled(each, taps_of(11))], anchors, chooser)
        found.append(torch.cat(chooser.seen))
    torch.testing.assert_close(found[0], found[1], **CLOSE)


# On the CPU's kernels


def logits_of(
    drafter: DeepseekV4Drafter | NativeDeepseekV4Drafter, *taps: torch.Tensor
) -> torch.Tensor:
    """Of a block of each of these requests [K, R, V]."""
    slots, chooser = [filled(drafter, each) for each in taps], Greedy()
    drafter.propose(slots, torch.arange(3, 3 + len(taps)), chooser)
    return torch.stack(chooser.seen)


def test_company_and_pieces_change_no_bit(native: NativeDeepseekV4Drafter) -> None:
    taps = [taps_of(n, n) for n in (3, 19, 90)]
    together = logits_of(native, *taps)
    anchors = torch.arange(3, 6)
    for number, each in enumerate(taps):
        slot, chooser = filled(native, each, *[1] * (len(each) % 4), len(each) // 4 * 4), Greedy()
        native.propose([slot], anchors[number : number + 1], chooser)
        assert torch.equal(torch.stack(chooser.seen)[:, 0], together[:, number])


@pytest.mark.parametrize("cut", [1, 12, 60, 79, 139])
def test_taken_back_by_as_much_as_a_pass_has_rows_nothing_is_forgotten(
    native: NativeDeepseekV4Drafter, cut: int
) -> None:
    """And beyond, what is left of the window is a fresh request's."""
    taps, length = taps_of(140), 140 - cut
    slot, fresh = filled(native, taps), native.open()
    native.truncate(slot, length)
    known = taps[:length] if cut <= 64 else taps[:0]
    fresh.first = fresh.length = length - len(known)
    native.extend([fresh], [torch.zeros(len(known), dtype=torch.long)], [known])
    found = []
    for each in (slot, fresh, native.fork(slot, length)):
        native.extend([each], [torch.zeros(2, dtype=torch.long)], [taps_of(2, 9)])
        found.append(Greedy())
        native.propose([each], torch.tensor([7]), found[-1])
    first, *others = (torch.stack(chooser.seen) for chooser in found)
    assert slot.length == length + 2
    assert all(torch.equal(each, first) for each in others)


def test_a_fork_is_another_request(native: NativeDeepseekV4Drafter) -> None:
    slot = filled(native, taps_of(20))
    before = slot.rings.clone()
    native.extend([native.fork(slot, 12)], [torch.zeros(5, dtype=torch.long)], [taps_of(5, 4)])
    assert slot.length == 20 and torch.equal(slot.rings, before)


def test_blocks_of_seven(tmp_path: Path) -> None:
    meaning = write(tmp_path, dspark_block_size=7)
    weights = read_own_head(tmp_path, device=CPU, dtype=torch.float32)
    native = native_of(tmp_path)
    plain = DeepseekV4Drafter(*weights, meaning["embed.weight"], native._output_head)
    found, expected = (logits_of(each, taps_of(30), taps_of(6)) for each in (native, plain))
    assert found.shape == (7, 2, 96)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_experts_from_slots_and_rows_of_8_bits(
    toy: tuple[Path, dict[str, torch.Tensor]], native: NativeDeepseekV4Drafter
) -> None:
    """A store beside the target's has slots in the same proportion and changes no bit; rounded
    rows change logits a little."""
    experts = [block.experts for block in load_deepseek_v4(toy[0], tap_layers=())._weights.blocks]
    store = ExpertStore(experts, 12)
    rounded, stored = (
        native_of(toy[0], rounds=True),
        native_of(toy[0], rounds=True, expert_store=store),
    )
    own = stored.expert_store
    assert own is not None and own.num_slots == 9  # of 18, as 12 of 24
    expected = logits_of(rounded, taps_of(20))
    for _ in range(40):
        assert torch.equal(logits_of(stored, taps_of(20)), expected)
        if own.hits > 10:
            break
    assert own.hits > 10 and own.failures == 0
    own.close()
    exact = logits_of(native, taps_of(20))[0]
    assert 0 < float((expected[0] - exact).norm() / exact.norm()) < 0.1


def test_keys_are_rounded_to_e4m3_as_in_torch() -> None:
    """To the bit, ties, tiny and huge numbers among them."""
    if (runtime := current()) is None:
        pytest.skip("no kernels for this processor")
    ties = (torch.arange(1024) - 512).float() / 32
    scaled = torch.randn(2048, generator=torch.Generator().manual_seed(1))
    scaled = scaled * torch.exp2(torch.arange(2048) % 40 - 30.0)
    x = torch.cat([ties, scaled, torch.zeros(64), torch.full((64,), 448.0)]).view(-1, 64 * 2)
    expected = fake_quantize_e4m3(x, 64)
    runtime.run([Op("round_e4m3", 0, 1, (x, 4 * x.stride(0), 2))], len(x))
    assert torch.equal(x, expected)
