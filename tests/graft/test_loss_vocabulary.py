"""A loss over part of the vocabulary: every label is in it, the rest changes from step to step."""

import torch

from dspark.config import GraftConfig
from dspark.graft.data.answer_file import Answer
from dspark.graft.train.loss import LossWeights, OutputHead, distribution_loss
from dspark.graft.train.loss_vocabulary import LossVocabulary

ANSWERS = [Answer((1, 5), (7, 90, 7), "", ""), Answer((2,), (41, 3), "", "")]
WRITTEN = {1, 2, 3, 5, 7, 41, 90}


BATCH = ANSWERS[:1]


def test_written_tokens_are_always_in_it_and_others_are_drawn():
    vocabulary = LossVocabulary(ANSWERS, 200, GraftConfig(loss_vocabulary=30, seed=4))
    steps = [vocabulary.at(step, BATCH) for step in range(40)]
    for ids in steps:
        assert len(ids) == len(WRITTEN) + 30
        assert torch.equal(ids, ids.unique()) and set(ids.tolist()) >= WRITTEN
    assert torch.equal(steps[3], vocabulary.at(3, BATCH))
    assert not torch.equal(steps[3], steps[4])
    assert len(set(torch.cat(steps).tolist())) > 190  # all get their turn


def test_only_the_most_frequent_tokens_are_drafted_and_labels_are_always_learnt():
    config = GraftConfig(loss_vocabulary=5, draft_vocabulary=2)
    vocabulary = LossVocabulary([*ANSWERS, Answer((7, 41), (41,), "", "")], 200, config)
    assert vocabulary.drafted.tolist() == [7, 41]
    ids = vocabulary.at(0, [Answer((3,), (90, 41), "", "")])
    assert set(ids.tolist()) >= {3, 7, 41, 90} and torch.equal(ids, ids.unique())
    assert len(ids) <= 9


def test_none_is_the_whole_vocabulary():
    for drawn in (0, 193, 500):
        config = GraftConfig(loss_vocabulary=drawn)
        assert LossVocabulary(ANSWERS, 200, config).at(0, BATCH) is None


def test_restricted_loss_is_the_loss_of_the_smaller_head():
    torch.manual_seed(0)
    weight, w2 = torch.randn(50, 12), torch.randn(50, 4)
    hidden, features, target = torch.randn(6, 12), torch.randn(6, 4), torch.randn(6, 12)
    tokens = torch.tensor([0, 3, 4, 9, 20, 33, 49])
    labels, rows = torch.tensor([3, 49, 9, 9, 0, 33]), torch.arange(6)
    whole = OutputHead(weight, 4)
    small = OutputHead(weight[tokens], 4)
    for head in (part := whole.restricted(tokens), small):
        head.load_markov(w2[tokens])
    shared = (target, rows, torch.searchsorted(tokens, labels), torch.rand(6))
    losses = [
        distribution_loss(hidden, features, w2[tokens], *shared, head, LossWeights(0.1, 0.9))[0]
        for head in (part, small)
    ]
    assert torch.equal(*losses)
    again = whole.restricted(tokens)
    assert again is part and torch.equal(again.weight, weight[tokens])
