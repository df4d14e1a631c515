"""The chunked loss against plain autograd over whole logits, in float64."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from dspark.graft.train.loss import (
    LossWeights,
    OutputHead,
    RowTerms,
    distribution_loss,
)
from dspark.graft.train.selector_loss import selector_loss
from dspark.models.candidate_selector import CandidateSelector

HIDDEN, VOCABULARY, RANK, POSITIONS = 12, 41, 5, 9
TARGET_ROWS = torch.tensor([0, 0, 1, 2, 2, 2, 5, 6, 8, 8, 8])
ROWS = len(TARGET_ROWS)
DEEPSPEC = LossWeights(cross_entropy=0.1, l1=0.9)
DISTILLING = LossWeights(cross_entropy=0.1, l1=0.9, distillation=0.7)
NLA = LossWeights(cross_entropy=0.1, l1=0.0, nla=0.9)
LK = LossWeights(cross_entropy=0.1, l1=0.2, lk=0.8)


def _inputs(rank: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "hidden": normal(ROWS, HIDDEN).requires_grad_(),
        "features": normal(ROWS, rank).requires_grad_(),
        "w2": normal(VOCABULARY, rank).requires_grad_(),
        "target_hidden": normal(POSITIONS, HIDDEN),
        "head": normal(VOCABULARY, HIDDEN),
        "labels": torch.randint(VOCABULARY, (ROWS,), generator=generator),
        "row_weights": torch.rand(ROWS, generator=generator, dtype=torch.float64),
    }


def _plain(
    given: dict[str, torch.Tensor], weights: LossWeights
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = given["hidden"] @ given["head"].T + given["features"] @ given["w2"].T
    target = (given["target_hidden"] @ given["head"].T).softmax(-1)[TARGET_ROWS]
    cross_entropy = F.cross_entropy(logits, given["labels"], reduction="none")
    l1 = (logits.softmax(-1) - target).abs().sum(-1)
    soft = -(target * logits.log_softmax(-1)).sum(-1)
    shared = torch.minimum(logits.softmax(-1), target).sum(-1)
    share = torch.exp(-3.0 * shared.detach())
    per_row = weights.cross_entropy * cross_entropy + weights.l1 * l1 + weights.distillation * soft
    per_row = per_row - weights.nla * shared.log()
    per_row = per_row + weights.lk * (share * soft + (1.0 - share) * (1.0 - shared))
    return (given["row_weights"] * per_row).sum(), cross_entropy, 1.0 - 0.5 * l1


def _chunked(
    given: dict[str, torch.Tensor], weights: LossWeights, chunk_rows: int
) -> tuple[torch.Tensor, RowTerms]:
    head = OutputHead(given["head"], given["w2"].shape[1])
    head.load_markov(given["w2"])
    return distribution_loss(
        given["hidden"],
        given["features"],
        given["w2"],
        given["target_hidden"],
        TARGET_ROWS,
        given["labels"],
        given["row_weights"],
        head,
        weights,
        chunk_rows,
    )


@pytest.mark.parametrize("chunk_rows", [1, 3, 128])
@pytest.mark.parametrize("weights", [DEEPSPEC, DISTILLING, NLA, LK])
def test_loss_and_gradients_equal_plain_autograd(chunk_rows: int, weights: LossWeights) -> None:
    given, expected = _inputs(RANK), _inputs(RANK)
    loss, terms = _chunked(given, weights, chunk_rows)
    plain_loss, cross_entropy, accept_rate = _plain(expected, weights)
    torch.testing.assert_close(loss, plain_loss)
    torch.testing.assert_close(terms.cross_entropy, cross_entropy.detach())
    torch.testing.assert_close(terms.accept_rate, accept_rate.detach())
    (2.5 * loss).backward()
    (2.5 * plain_loss).backward()
    for name in ("hidden", "features", "w2"):
        torch.testing.assert_close(given[name].grad, expected[name].grad, msg=name)


def test_without_a_markov_head_only_hidden_states_get_a_gradient() -> None:
    given = _inputs(0)
    head = OutputHead(given["head"], 0)
    loss, _ = distribution_loss(
        given["hidden"],
        None,
        None,
        given["target_hidden"],
        TARGET_ROWS,
        given["labels"],
        given["row_weights"],
        head,
        DEEPSPEC,
    )
    loss.backward()
    expected = _inputs(0)
    plain_loss, _, _ = _plain(expected, DEEPSPEC)
    plain_loss.backward()
    torch.testing.assert_close(given["hidden"].grad, expected["hidden"].grad)


def test_a_draft_equal_to_the_target_has_no_distance() -> None:
    given = _inputs(RANK)
    with torch.no_grad():
        given["w2"].zero_()
        given["hidden"].copy_(given["target_hidden"][TARGET_ROWS])
    _, terms = _chunked(given, DEEPSPEC, 4)
    torch.testing.assert_close(terms.accept_rate, torch.ones(ROWS, dtype=torch.float64))


def test_the_selectors_loss_is_cross_entropy_among_the_candidates() -> None:
    """Against plain autograd; rows whose label is no candidate have neither loss nor gradient."""
    given = _inputs(0)
    weights, num, rank = given["row_weights"], 6, 4
    size = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "selector_rank": rank}
    selector = CandidateSelector(SimpleNamespace(**size)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in selector.parameters():
            parameter.normal_(0.0, 1.0, generator=generator)
    previous = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    head = OutputHead(given["head"], 0)
    common = (given["target_hidden"], TARGET_ROWS, given["labels"], weights, head)
    _, terms = distribution_loss(
        given["hidden"], None, None, *common, LossWeights(1.0, 0.0), 3, num
    )
    rows = SimpleNamespace(hidden=given["hidden"], previous=previous)
    loss, of_choice = selector_loss(selector, rows, terms, head, None, given["labels"], weights, 3)
    trained = [given["hidden"], *selector.parameters()]
    found = torch.autograd.grad(loss, trained)

    logits = given["hidden"] @ given["head"].T
    context = selector.predecessor_codebook[previous] * selector.hidden_projection(given["hidden"])
    scores = logits + context @ selector.successor_codebook.T
    outside = logits < logits.topk(num).values[:, -1:]
    probs = scores.masked_fill(outside, float("-inf")).softmax(-1)
    of_label = probs.gather(1, given["labels"].unsqueeze(1)).squeeze(1)
    is_in = of_label > 0
    assert 0 < int(is_in.sum()) < ROWS
    expected = -(weights[is_in] * of_label[is_in].log()).sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, trained, retain_graph=True))
    target = (given["target_hidden"] @ given["head"].T).softmax(-1)[TARGET_ROWS]
    torch.testing.assert_close(of_choice.accept_rate, torch.minimum(probs, target).sum(-1))
