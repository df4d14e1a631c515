"""Which text gets which sign, before any terminal is involved."""

import pytest

from dspark.chat.token_spans import Mark, marks_of
from dspark.events import DecodeStats, Finished, Piece, PrefillProgress, Round
from dspark_tui.token_styles import View, content_of, shade_percent, style_of


def round_of(pieces: list[Piece], rejected: list[Piece]) -> Round:
    return Round(
        request_id=0,
        index=0,
        anchor=1,
        draft=(),
        confidence=None,
        verified=0,
        accepted=0,
        next=3,
        pieces=tuple(pieces),
        rejected=tuple(rejected),
        context_tokens=0,
        draft_seconds=0.0,
        verify_seconds=0.0,
        seconds=0.0,
    )


def draft(text: str, confidence: float | None = None) -> Piece:
    return Piece(2, text, True, confidence)


def own(text: str) -> Piece:
    return Piece(3, text, False)


def test_rejected_drafts_stand_where_they_were_refused():
    marks = marks_of(round_of([draft(" a"), draft(" b"), own(" c")], [draft(" x"), draft(" y")]))
    assert [(mark.text, mark.kind) for mark in marks] == [
        (" a", "accepted"),
        (" b", "accepted"),
        (" x", "rejected"),
        (" y", "rejected"),
        (" c", "own"),
    ]


def test_a_round_cut_at_a_stop_has_no_token_of_the_targets_own():
    marks = marks_of(round_of([draft("a")], []))
    assert [mark.kind for mark in marks] == ["accepted"]


def test_the_prompts_own_token_is_the_targets():
    (mark,) = marks_of(PrefillProgress(0, 4, 4, (own("Hi"),)))
    assert mark == Mark("Hi", "own")


def test_a_refused_line_break_does_not_break_the_line():
    marks = marks_of(round_of([own("a\nb")], [draft("\n\n\t")]))
    assert [mark.text for mark in marks] == ["⏎⏎⇥", "a\nb"]


@pytest.mark.parametrize("harmful", ["\x1b[31m", "\x07", "\x9b2J", "\x7f", "\x00"])
def test_control_characters_never_reach_the_terminal(harmful):
    for marks in (
        marks_of(round_of([own(harmful)], [])),
        marks_of(round_of([], [draft(harmful)])),
    ):
        text = content_of(marks, View()).plain
        assert text.isprintable() and len(text) == len(harmful)


def test_markup_stays_text():
    content = content_of([Mark("[bold]x[/bold] [@click=app.quit]", "own")], View())
    assert content.plain == "[bold]x[/bold] [@click=app.quit]"


def test_hidden_drafts_leave_the_answer_as_it_is():
    marks = [Mark("a", "accepted"), Mark("x", "rejected"), Mark("b", "own")]
    assert content_of(marks, View(show_rejected=False)).plain == "ab"
    assert content_of(marks, View(show_rejected=True)).plain == "axb"


def test_neighbours_with_the_same_sign_share_a_span():
    marks = [Mark("a", "accepted", 0.1), Mark("b", "accepted", 0.9), Mark("c", "own")]
    assert len(content_of(marks, View()).spans) == 2
    assert len(content_of(marks, View(shading=True)).spans) == 3


def test_every_kind_has_a_second_sign_beside_its_colour_in_both_views():
    for view in (View(), View(shading=True)):
        accepted, rejected, target = (
            style_of(Mark("", kind, 0.5), view) for kind in ("accepted", "rejected", "own")
        )
        assert "underline" in accepted and "strike" not in accepted
        assert "strike" in rejected and "underline" not in rejected
        assert "underline" not in target and "strike" not in target
    assert len({style_of(Mark("", kind), View()).split()[0] for kind in ("accepted", "own")}) == 2


def test_more_confidence_is_a_deeper_shade():
    shades = [shade_percent(confidence) for confidence in (-1.0, 0.0, 0.2, 0.5, 0.8, 1.0, 2.0)]
    assert shades == sorted(shades)
    assert shades[1] < shades[3] < shades[5] and shades[0] == shades[1] and shades[5] == shades[6]


def test_without_a_confidence_head_nothing_is_shaded():
    assert " on " not in style_of(Mark("a", "accepted", None), View(shading=True))


def test_text_held_back_to_the_end_is_shown():
    stats = DecodeStats(1, 2, 1, 0, 0, 0, 0.1, 0.1)
    assert marks_of(Finished(0, "max_tokens", (1, 2), "ok \ufffd", stats, "\ufffd")) == [
        Mark("\ufffd", "own")
    ]
    assert marks_of(Finished(0, "max_tokens", (1, 2), "ok", stats)) == []
