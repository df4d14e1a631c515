"""DFlash 2: its modules begin as no-ops, its block is the reference's, its drafts are lossless."""

import json
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch

from dspark.checkpoints.deepspec import read_draft
from dspark.checkpoints.dflash2_config import DFlash2Config
from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.config import SamplingConfig
from dspark.drafters.dflash2 import DFlash2Drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.training_blocks import block_hidden, sample_blocks
from dspark.engine.sampling import BatchChooser, Sampler
from dspark.models.dflash2_head import BlockConvolution, DFlash2Head
from dspark_kernels import accept_sampled
from tests.conformance import reference_heads as reference
from tests.engine.pairs import GOLDEN
from tests.engine.test_distribution import FALSE_ALARM, chi_square_p

TOY = DFlash2Config(
    vocab_size=20,
    hidden_size=16,
    intermediate_size=24,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    target_layer_ids=(0, 1),
    num_target_layers=4,
    num_layers=2,
    block_size=3,
    mask_token_id=19,
    conv_group_size=4,
    selector_rank=6,
    selector_top_k=4,
)
EMBEDDING = torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
OUTPUT = torch.nn.Linear(16, 20, bias=False)
with torch.no_grad():
    OUTPUT.weight.copy_(torch.randn(20, 16, generator=torch.Generator().manual_seed(2)) * 0.3)


def random_head(config: DFlash2Config = TOY, seed: int = 0) -> DFlash2Head:
    head = DFlash2Head(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if not name.endswith(("norm.weight", "layernorm.weight")):
                parameter.normal_(0.0, 0.4, generator=generator)
    return head


def drafter_of(head: DFlash2Head, config: DFlash2Config = TOY) -> DFlash2Drafter:
    return DFlash2Drafter(config, head.state_dict(), EMBEDDING, OUTPUT, prepack=False)


class Greedy:
    """The likeliest column, and what it was chosen from."""

    def __init__(self) -> None:
        self.shown: list[torch.Tensor] = []

    def races(self, num_places: int) -> None:
        return None

    def choose(self, logits, token_ids=None):
        self.shown.append(logits)
        return logits.argmax(-1), [None] * len(logits)


@torch.inference_mode()
def proposed(drafter, lengths, chooser):
    """A block behind random contexts of these lengths."""
    generator = torch.Generator().manual_seed(7)
    slots = [drafter.open() for _ in lengths]
    for slot, length in zip(slots, lengths, strict=True):
        taps = torch.randn(length, drafter.config.tap_width, generator=generator)
        drafter.extend([slot], [torch.zeros(length, dtype=torch.long)], [taps])
    return drafter.propose(slots, torch.arange(3, 3 + len(lengths)), chooser)


def test_a_head_that_was_just_begun_is_dflash_to_the_bit():
    head = random_head()
    head.begin(torch.Generator().manual_seed(0))
    shared = {field.name: getattr(TOY, field.name) for field in fields(DSparkConfig)}
    plain = DSparkConfig(**shared)
    state = {n: t for n, t in head.state_dict().items() if "conv" not in n and "select" not in n}
    dflash = DSparkDrafter(plain, state, EMBEDDING, OUTPUT, prepack=False)
    ours, theirs = Greedy(), Greedy()
    drafts = [proposed(d, [5, 9], c) for d, c in ((drafter_of(head), ours), (dflash, theirs))]
    assert torch.equal(drafts[0].token_ids, drafts[1].token_ids)
    for scores, logits in zip(ours.shown, theirs.shown, strict=True):
        assert torch.equal(scores, logits.topk(4).values)


def test_a_convolution_does_not_leave_its_block():
    config = replace(TOY, block_size=4, conv_kernel_size=3)
    convolution = random_head(config).layers[0].mlp_conv
    assert isinstance(convolution, BlockConvolution)
    x = torch.randn(3 * 5, 16)

    def run(rows, side=0):
        return convolution.filtered(rows, convolution.coefficients(rows), side)

    with torch.no_grad():
        whole, changed = run(x), x.clone()
        changed[5:10] += 1.0
        assert torch.equal(run(changed)[:5], whole[:5])
        assert torch.equal(run(changed)[10:], whole[10:])
        assert not torch.equal(run(changed)[5:10], whole[5:10])
        for side in (0, 1):  # a row sees those before it alone
            last = x.clone()
            last[4::5] += 1.0
            kept = torch.arange(15) % 5 != 4
            assert torch.equal(run(last, side)[kept], run(x, side)[kept])


@pytest.mark.parametrize("lengths", [[30], [6, 41, 1]])
def test_a_block_is_the_one_of_the_published_description(lengths):
    raw = json.loads((GOLDEN / "dflash2" / "draft" / "config.json").read_text())
    config, tensors = read_draft(GOLDEN / "dflash2" / "draft")
    embedding, weight = (
        torch.randn(65, 48, generator=torch.Generator().manual_seed(s)) for s in (3, 4)
    )
    output = torch.nn.Linear(48, 65, bias=False).requires_grad_(False)
    output.weight.copy_(weight)
    drafter = DFlash2Drafter(config, dict(tensors), embedding, output)
    drafted = proposed(drafter, lengths, Greedy())
    generator = torch.Generator().manual_seed(7)
    for row, length in enumerate(lengths):
        taps = torch.randn(length, config.tap_width, generator=generator)
        tables = {"embedding": embedding, "head": weight}
        path = reference.dflash2_draft(raw, tensors, tables, taps, length, 3 + row)
        assert drafted.token_ids[row].tolist() == path


def test_equal_scores_are_decided_as_on_the_lattice():
    """Every column twice: the walk and the lattice take the same one of the two."""
    raw = {"dflash_config": {"selector_top_k": 4}}
    head = random_head()
    selector = head.candidate_selector
    with torch.no_grad():
        selector.successor_codebook[10:] = selector.successor_codebook[:10]
        hidden = torch.randn(3, 16)
        logits = torch.randn(3, 10).repeat(1, 2)
        tensors = {n: t.detach() for n, t in head.state_dict().items()}
        candidates, lattice = reference.lattice(raw, tensors, hidden, logits, 5)
        before, at = torch.tensor([5]), 0
        for k in range(3):
            unary, known = logits[k : k + 1].topk(4, dim=-1)
            projected = selector.hidden_projection(hidden[k : k + 1])
            scores = selector.scores(unary, known, projected, before)
            torch.testing.assert_close(scores[0], lattice[k][at])
            at = int(lattice[k][at].argmax())
            assert int(scores.argmax()) == at
            before = known[:, at]
            assert int(before) == int(candidates[k][at])


def counted(filters: dict[str, float], drafts_filters: dict[str, float], rounds: int) -> None:
    """A round's first token, and the second behind the likeliest ones, follow the target.

    The target is a table of 20 tokens; the drafter has four candidates, which often lack the token.
    """
    generator = torch.Generator().manual_seed(4)
    table = torch.randn(20, 20, generator=generator) * 1.5
    drafter, at_once = drafter_of(random_head(seed=5)), 500
    firsts, seconds = Counter(), Counter()
    is_draft_certain = is_outside = 0
    for part in range(rounds // at_once):
        entropies = [part * at_once + i for i in range(at_once)]
        drafting = [Sampler(SamplingConfig(1.0, **drafts_filters), e) for e in entropies]
        judging = [Sampler(SamplingConfig(1.0, **filters), e + 10**9) for e in entropies]
        with torch.inference_mode():
            slots = [drafter.open() for _ in entropies]
            taps = torch.ones(2, drafter.config.tap_width)
            for slot in slots:
                drafter.extend([slot], [torch.zeros(2, dtype=torch.long)], [taps])
            drafted = drafter.propose(
                slots, torch.full((at_once,), 3), BatchChooser(drafting, [2] * at_once, 20)
            )
        for row, judge in enumerate(judging):
            ids, probs = drafted.token_ids[row], drafted.probs[row]
            assert probs is not None and int((probs > 0).sum(1).max()) <= 4
            is_outside += probs[0, table[3].argmax()] == 0
            is_draft_certain += bool((probs.max(1).values == 1).any())
            logits = table[torch.cat([torch.tensor([3]), ids])]
            kept = judge.accept(ids, probs, logits, 2)
            text = [*ids[: kept.num_accepted].tolist(), kept.next_id]
            firsts[text[0]] += 1
            if len(text) > 1:
                seconds[text[0], text[1]] += 1
        for slot in slots:
            drafter.close(slot)
    expected = Sampler(SamplingConfig(1.0, **filters)).probabilities(table)
    assert chi_square_p(firsts, expected[3].tolist()) > FALSE_ALARM
    for first, count in firsts.most_common(3):
        followers = Counter({b: n for (a, b), n in seconds.items() if a == first})
        if sum(followers.values()) > count / 20:
            assert chi_square_p(followers, expected[first].tolist()) > FALSE_ALARM
    assert len(seconds) > 3


BOTH = {"top_k": 0, "top_p": 0.8}


@pytest.mark.parametrize(
    ("filters", "drafts_filters", "rounds"),
    [
        ({}, {}, 1000),
        (BOTH, {}, 1000),  # the target's alone
        pytest.param({}, {}, 100_000, marks=pytest.mark.counting),
        pytest.param(BOTH, {}, 100_000, marks=pytest.mark.counting),
        pytest.param(BOTH, BOTH, 100_000, marks=pytest.mark.counting),
    ],
)
def test_what_is_written_follows_the_target(filters, drafts_filters, rounds):
    counted(filters, drafts_filters, rounds)


def test_a_residual_without_mass_falls_back_to_the_target():
    """Rounding may leave the target below the draft at every token."""
    draft = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    target = torch.cat([draft / 2, draft])
    generator, written = torch.Generator().manual_seed(0), Counter()
    for _ in range(2000):
        token = int(draft[0].multinomial(1, generator=generator))
        kept = accept_sampled(torch.tensor([token]), draft, target, generator)
        written[token if kept.num_accepted else kept.next_id] += 1
    assert chi_square_p(written, draft[0].tolist()) > FALSE_ALARM


def test_training_sees_what_decoding_sees():
    head = random_head(seed=6)
    generator = torch.Generator().manual_seed(8)
    ids = torch.randint(20, (14,), generator=generator)
    taps = torch.randn(14, TOY.tap_width, generator=generator)
    blocks = sample_blocks(ids, 2, 6, TOY.block_size, generator)
    drafter = drafter_of(head)
    with torch.no_grad():
        hidden = block_hidden(head, head.rotary_table(), EMBEDDING, taps, blocks)
        for index, anchor in enumerate(blocks.anchors.tolist()):
            slot = drafter.open()
            drafter.extend([slot], [ids[:anchor]], [taps[:anchor]])
            decoded = drafter._backbone([slot], ids[anchor : anchor + 1])[-TOY.block_size :]
            torch.testing.assert_close(hidden[index], decoded, rtol=1e-4, atol=1e-4)
