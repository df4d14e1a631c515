"""A reduced vocabulary with a request's own tokens is the full one, less some columns."""

import pytest
import torch

from dspark.drafters import vocabulary
from dspark.drafters.vocabulary import FullVocabulary, OwnTokens, ReducedVocabulary
from dspark_kernels import SkinnyLinear

FIXED = torch.tensor([0, 3, 4, 9])


class Markov:
    def __init__(self, weight: torch.Tensor) -> None:
        self.markov_w2 = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.markov_w2.weight.data = weight


@pytest.fixture
def both() -> tuple[FullVocabulary, ReducedVocabulary]:
    torch.manual_seed(0)
    head = SkinnyLinear(torch.randn(400, 8), is_shared=True)
    markov = Markov(torch.randn(400, 3))
    return FullVocabulary(head, markov), ReducedVocabulary(FIXED, head, markov)


def state(own: OwnTokens) -> tuple:
    return own.ids.tolist(), own.mask.tolist(), own.head_rows.tolist(), own.markov_rows.tolist()


@torch.inference_mode()
def test_its_columns_are_the_full_vocabulary_of_what_it_holds(both):
    full, reduced = both
    owns = [reduced.open(), reduced.open()]
    reduced.extend(owns[0], [7, 3, 120, 7])
    reduced.extend(owns[1], [399])
    hidden, features = torch.randn(2, 3, 8), torch.randn(2, 3)
    logits = reduced.logits(hidden, owns) + reduced.bias(features, owns).unsqueeze(1)
    expected = full.logits(hidden, [None] * 2) + full.bias(features, [None] * 2).unsqueeze(1)
    for request, held in enumerate([{0, 3, 4, 9, 7, 120}, {0, 3, 4, 9, 399}]):
        seen = {}
        for column in range(logits.shape[-1]):
            if logits[request, 0, column] > float("-inf"):
                columns = torch.full((2,), column)
                token = int(reduced.token_ids(columns, owns)[request])
                seen[token] = column
        assert seen.keys() == held and len(seen) == len(held)
        ids = list(seen)
        torch.testing.assert_close(
            logits[request][:, list(seen.values())], expected[request][:, ids]
        )
        probs = logits[request, 1].softmax(-1)
        spread = reduced.distribution(probs, owns[request])
        wanted = torch.full((400,), float("-inf"))
        wanted[ids] = expected[request, 1, ids]
        torch.testing.assert_close(spread, wanted.softmax(-1))


@torch.inference_mode()
def test_company_changes_nothing(both):
    _, reduced = both
    one, other = reduced.open(), reduced.open()
    reduced.extend(one, [50, 60])
    reduced.extend(other, [*range(100, 300)])
    hidden = torch.randn(2, 3, 8)
    alone = reduced.logits(hidden[:1], [one])
    assert torch.equal(reduced.logits(hidden, [one, other])[:1], alone)


def test_it_follows_from_the_tokens_alone_even_where_columns_ran_out(both, monkeypatch):
    monkeypatch.setattr(vocabulary, "OWN_TOKENS", 5)
    _, reduced = both
    torch.manual_seed(1)
    tokens = torch.randint(0, 30, (80,))
    whole = reduced.open()
    reduced.extend(whole, tokens.tolist())
    pieces = reduced.open()
    for chunk in tokens.split(7):
        reduced.extend(pieces, chunk.tolist())
    assert state(whole) == state(pieces)
    held = [int(i) for i, m in zip(whole.ids, whole.mask, strict=True) if m == 0]
    assert len(held) == 5 and not set(held) & set(FIXED.tolist())
    reduced.extend(pieces, [200, 201, 202, 203, 204, 205])
    reduced.truncate(pieces, 33)
    fresh = reduced.open()
    reduced.extend(fresh, tokens[:33].tolist())
    live = fresh.mask == 0
    assert torch.equal(fresh.ids[live], pieces.ids[live]) and torch.equal(fresh.mask, pieces.mask)
