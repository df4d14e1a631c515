"""What a training block sees and is compared with."""

from dataclasses import replace

import pytest
import torch

from dspark.checkpoints.dspark_config import MarkovType
from dspark.config import GraftConfig
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.training_blocks import block_hidden, packed_hidden, sample_blocks
from dspark.graft.data.answer_file import Answer
from dspark.graft.head.shape import draft_config
from dspark.graft.target.frozen_target import FrozenTarget
from dspark.graft.train.objective import sequential
from dspark.models.dspark_head import DSparkHead
from tests.graft.forced import Forced

MASK = 95


def _random_head(target: FrozenTarget, config: GraftConfig) -> DSparkHead:
    torch.manual_seed(2)
    head = DSparkHead(draft_config(target.config, config, MASK))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return head


@pytest.mark.parametrize("markov_type", ["none", "vanilla", "gated", "rnn"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_training_and_decoding_see_the_same(
    markov_type: MarkovType,
    num_layers: int,
    target: FrozenTarget,
    answers: list[Answer],
    small_config: GraftConfig,
) -> None:
    config = replace(small_config, markov_type=markov_type, num_layers=num_layers)
    head = _random_head(target, config)
    ids = torch.tensor(answers[0].token_ids)
    blocks = sample_blocks(ids, len(answers[0].prompt_ids), 6, 4, torch.Generator().manual_seed(0))
    taps = target.view(answers[0].token_ids).taps
    with torch.no_grad():
        hidden = block_hidden(head, head.rotary_table(), target.embedding, taps, blocks)
        features, confidence = sequential(head, hidden, blocks.previous)
        logits = hidden @ target.output_head.T
        if head.markov_head is not None:
            logits = logits + head.markov_head.markov_w2(features)
        drafter = DSparkDrafter(
            head.config,
            head.state_dict(),
            target.embedding,
            lambda x: x @ target.output_head.T,
        )
        for index, anchor in enumerate(blocks.anchors.tolist()):
            slot = drafter.open()
            drafter.extend([slot], [ids[:anchor]], [taps[:anchor]])
            chooser = Forced(blocks.labels[index].tolist())
            proposals = drafter.propose([slot], ids[anchor : anchor + 1], chooser)
            torch.testing.assert_close(
                logits[index], torch.stack(chooser.logits), rtol=2e-4, atol=2e-4
            )
            torch.testing.assert_close(
                confidence[index].sigmoid(), proposals.confidences[0], rtol=2e-4, atol=2e-4
            )


def test_a_block_does_not_see_its_own_future(
    target: FrozenTarget, answers: list[Answer], small_config: GraftConfig
) -> None:
    head = _random_head(target, small_config)
    ids = torch.tensor(answers[0].token_ids)
    blocks = sample_blocks(ids, len(answers[0].prompt_ids), 3, 4, torch.Generator().manual_seed(0))
    taps = target.view(answers[0].token_ids).taps
    changed = taps.clone()
    changed[blocks.anchors[1] :] += 1.0  # from the second anchor's own position on
    rotary = head.rotary_table()
    with torch.no_grad():
        before = block_hidden(head, rotary, target.embedding, taps, blocks)
        after = block_hidden(head, rotary, target.embedding, changed, blocks)
    torch.testing.assert_close(after[:2], before[:2])
    assert (after[2] - before[2]).abs().max() > 1e-3


def test_anchors_and_labels_stay_inside_the_answer() -> None:
    ids = torch.arange(100, 120)
    seen = set()
    for seed in range(50):
        blocks = sample_blocks(ids, 8, 5, 4, torch.Generator().manual_seed(seed))
        seen.update(blocks.anchors.tolist())
        assert blocks.anchors.tolist() == sorted(set(blocks.anchors.tolist()))
        # position k of the block at p: previous token x_(p+k), label x_(p+k+1)
        assert torch.equal(blocks.labels[:, 0], ids[blocks.anchors + 1])
        assert torch.equal(blocks.previous[:, 0], ids[blocks.anchors])
        assert torch.equal(blocks.supervised, blocks.positions + 1 < 20)
        labels = blocks.labels[blocks.supervised]
        assert torch.equal(labels, ids[blocks.positions[blocks.supervised] + 1])
    assert seen == set(range(8, 19))


def test_a_short_answer_gives_the_anchors_it_has() -> None:
    blocks = sample_blocks(torch.arange(10), 7, 64, 4, torch.Generator())
    assert blocks.anchors.tolist() == [7, 8]
    assert blocks.supervised.sum(dim=1).tolist() == [2, 1]


def test_packed_texts_are_those_of_each_alone(
    target: FrozenTarget, small_config: GraftConfig
) -> None:
    """Three lengths: values and gradients as one by one, to float32's
    rounding. A row that saw another text's features would differ."""
    head = _random_head(target, small_config)
    rotary, generator = head.rotary_table(), torch.Generator().manual_seed(3)
    texts = [torch.randint(90, (size,), generator=generator) for size in (31, 9, 18)]
    blocks = [sample_blocks(text, 4, 5, 4, generator) for text in texts]
    taps = [target.view(tuple(text.tolist())).taps for text in texts]
    found = []
    for is_packed in (False, True):
        head.zero_grad()
        if is_packed:
            hidden = packed_hidden(head, rotary, target.embedding, taps, blocks)
        else:
            each = zip(taps, blocks, strict=True)
            hidden = torch.cat([block_hidden(head, rotary, target.embedding, *e) for e in each])
        hidden.square().sum().backward()
        gradients = [p.grad.flatten() for p in head.parameters() if p.grad is not None]
        found.append((hidden.detach(), torch.cat(gradients)))
    (alone, of_alone), (packed, of_packed) = found
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    assert (of_packed - of_alone).norm() < 1e-6 * of_alone.norm()
