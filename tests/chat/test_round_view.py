"""What became of each draft, from a round's own numbers."""

import pytest

from dspark.chat.round_view import draft_rows, end_of, host_seconds, own_token
from dspark.events import Piece, Round


def round_of(accepted, verified, drafted=4, own="x y\n"):
    ids = tuple(range(10, 10 + drafted))
    pieces = tuple(Piece(i, f" {i}", True) for i in ids[:accepted])
    return Round(
        request_id=0,
        index=0,
        anchor=1,
        draft=ids,
        confidence=tuple(0.5 for _ in ids),
        verified=verified,
        accepted=accepted,
        next=2,
        pieces=(*pieces, *([Piece(2, own, False)] if own else [])),
        rejected=tuple(Piece(i, f"({i})", True) for i in ids[accepted:verified]),
        context_tokens=9,
        draft_seconds=0.25,
        verify_seconds=0.5,
        seconds=1.0,
        accept_seconds=0.0625,
        draft_probs=(0.9, 0.8, 0.7, 0.6)[:drafted],
        target_probs=(0.5, 0.4, 0.3, 0.2)[:verified],
    )


@pytest.mark.parametrize(
    ("accepted", "verified", "drafted", "end"),
    [
        (4, 4, 4, "all accepted"),
        (1, 4, 4, "rejected"),
        (0, 1, 4, "rejected"),
        (2, 2, 4, "schedule"),
        (0, 0, 4, "schedule"),
        (0, 0, 0, "no drafts"),
    ],
)
def test_what_ended_the_round(accepted, verified, drafted, end):
    assert end_of(round_of(accepted, verified, drafted)) == end


def test_each_draft_with_its_text_its_confidence_and_what_became_of_it():
    rows = draft_rows(round_of(1, 3))
    assert [row.outcome for row in rows] == [
        *("accepted", "rejected", "behind a rejected one", "not verified")
    ]
    assert [row.text for row in rows] == ["·10", "(11)", "(12)", None]
    assert [row.survival for row in rows] == [0.5, 0.25, 0.125, 0.0625]
    assert [row.draft_prob for row in rows] == [0.9, 0.8, 0.7, 0.6]
    assert [row.target_prob for row in rows] == [0.5, 0.4, 0.3, None]
    assert [(row.position, row.token_id) for row in rows] == [(1, 10), (2, 11), (3, 12), (4, 13)]


def test_the_targets_own_token_and_the_rest_of_the_time():
    assert own_token(round_of(1, 3)) == "x·y⏎" and own_token(round_of(1, 3, own="")) == ""
    assert host_seconds(round_of(1, 3)) == 0.1875
