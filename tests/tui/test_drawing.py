"""What a frame of a growing answer costs: rows that are new, however long the answer has become."""

import gc
import random
from collections import Counter

import pytest
from textual._compositor import Compositor
from textual.content import Content
from textual.geometry import Offset
from textual.selection import Selection
from textual.strip import Strip

from dspark.chat.token_spans import Mark
from dspark_tui.garbage import NEVER
from dspark_tui.token_styles import View
from dspark_tui.widgets import rows
from dspark_tui.widgets.rows import Rows
from dspark_tui.widgets.section import Section

WORDS = ("a", "the", "strawberry", "日本語", "é́", "x" * 30, "…", "don't", "👩‍🚀")


@pytest.fixture
def work(monkeypatch):
    """Counts layouts of the screen, rows that are drawn anew and characters that are wrapped."""
    done: Counter[str] = Counter()

    def counted(owner, name, amount):
        real = getattr(owner, name)

        def call(*arguments, **rest):
            done[name] += amount(*arguments)
            return real(*arguments, **rest)

        monkeypatch.setattr(owner, name, call)

    counted(Compositor, "reflow", lambda *_: 1)
    counted(Section, "_strip", lambda *_: 1)
    counted(rows, "divide_line", lambda text, width: len(text))
    return done


async def test_a_frame_of_a_long_answer_costs_what_one_of_a_short_answer_does(
    open_chat, backend, script, work
):
    backend.is_held = True
    steps = [
        (["some words of an answer,"], [" refused"], " and\n" if i % 9 == 8 else " more,")
        for i in range(700)
    ]
    async with open_chat(script("Start\n", *steps)) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("Go")

        async def written(rounds: int) -> None:
            backend.release(rounds)
            target = chat.screen.status.stats.rounds + rounds
            await chat.until(lambda: chat.screen.status.stats.rounds == target)
            await chat.pilot.pause()

        async def cost_of_frames(count: int) -> Counter[str]:
            work.clear()
            for _ in range(count):
                await written(1)
            return Counter(work)

        backend.release(1)
        await written(60)
        early = await cost_of_frames(18)
        await written(540)
        late = await cost_of_frames(18)
        assert late["divide_line"] <= early["divide_line"] + 18 * 80
        assert late["_strip"] <= 18 * 3  # a round touches a row and begins at most two
        assert late["reflow"] <= early["reflow"] + 2 and late["reflow"] <= 2 * 18
        assert len(chat.screen.query(Section)) == 1


async def test_figures_of_a_frame_draw_their_own_line_alone(open_chat, backend, script):
    """Not the whole screen."""
    backend.is_held = True
    async with open_chat(
        script("The", *[([" a"], [], word) for word in (" b", " c", " d")])
    ) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("Go")
        backend.release(2)
        await chat.until_shown("The a b", "40.0 tok/s")
        await chat.pilot.pause()
        drawn = []
        render = chat.screen._compositor.render_update
        chat.screen._compositor.render_update = lambda *a, **k: (
            drawn.extend(chat.screen._compositor._dirty_regions) or render(*a, **k)
        )
        backend.release(1)
        await chat.until_shown("The a b a c")
        assert drawn and max(region.height for region in drawn) == 1


async def test_rows_that_are_drawn_are_kept_until_the_view_changes(open_chat, script):
    async with open_chat(script("one two three\n" * 4, ([" end"], [], "."))) as chat:
        await chat.asked_and_answered("Go")
        section = chat.screen.query_one(Section)
        before = kept(section)
        answer = chat.screen.query_one("Answer")
        answer.add([Mark(" and more", "own")])
        await chat.until_shown("and more")
        assert all(a is b for a, b in zip(before[:4], kept(section), strict=False))
        await chat.pilot.press("ctrl+t")
        await chat.until(lambda: kept(section)[0] is not before[0])


def kept(section: Section) -> list[Strip | None]:
    return [row.strip for row in section._rows.rows]


async def test_a_long_paragraph_is_one_text_however_it_came(open_chat, script):
    steps = [([f"word{i},"], [" no"], " and ") for i in range(40)]
    async with open_chat(script("Start ", *steps), size=(60, 40)) as chat:
        await chat.asked_and_answered("Go")
        section = chat.screen.query_one(Section)
        grown = chat.shown
        section.show(View(show_rejected=False, rendered=False))
        section.show(View(rendered=False))
        await chat.until_shown("word39")
        await chat.pilot.pause()
        assert chat.shown == grown


async def test_the_mouse_finds_its_place_in_a_wrapped_text(open_chat, script):
    text = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu\nnu xi"
    async with open_chat(script(text, ([" omikron"], [" pi"], ".")), size=(40, 24)) as chat:
        await chat.asked_and_answered("Go")
        section = chat.screen.query_one(Section)
        lines = chat.shown.split("\n")
        for word in ("alpha", "theta", "lambda", "xi"):
            y = next(at for at, line in enumerate(lines) if word in line)
            x = lines[y].index(word)
            widget, offset = chat.screen.get_widget_and_offset_at(x, y)
            place = text.split("\n")[offset.y].index(word)
            assert widget is section and offset.x == place
        chat.screen.selections = {section: Selection(Offset(6, 0), Offset(5, 1))}
        await chat.pilot.pause()
        assert chat.screen.get_selected_text() == text[6:].rpartition("\n")[0] + "\nnu xi"
        assert chat.style("gamma").bgcolor != chat.style("omikron").bgcolor
        assert chat.style("alpha").bgcolor == chat.style("omikron").bgcolor


@pytest.mark.parametrize("seed", range(4))
def test_growing_rows_are_those_of_the_whole_text(seed):
    """As Textual wraps it in one go."""
    draw = random.Random(seed)
    text = "".join(draw.choice(WORDS) + draw.choice(("", " ", " ", "  ", "\n")) for _ in range(300))
    text = " ".join(text.split(" "))
    width = 40
    longest = max(Content(word).cell_length for word in text.split())
    text = text if longest <= width else " ".join(word[:12] for word in text.split())
    grown = Rows(width)
    at = 0
    while at < len(text):
        step = draw.randint(1, 7)
        grown.append(Content(text[at : at + step]))
        at += step
    shown = [grown.shown(number).plain for number in range(len(grown))]
    assert shown == [line.plain for line in Content(text).wrap(width)]
    assert "".join(row.content.plain for row in grown.rows) == text.replace("\n", "")
    assert all(grown.shown(number).cell_length <= width for number in range(len(grown)))


def test_a_word_longer_than_a_row_is_folded_as_it_grows():
    grown = Rows(10)
    for character in "see " + "0123456789" * 3 + "! end":
        grown.append(Content(character))
    assert [row.content.plain for row in grown.rows] == [
        "see ",
        *["0123456789"] * 3,
        "! end",
    ]
    assert [(row.x, row.y) for row in grown.rows] == [(0, 0), (4, 0), (14, 0), (24, 0), (34, 0)]


def test_tabs_reach_the_stops_of_their_line():
    grown = Rows(40)
    for part in ("ab", "\tc", "\n", "\t", "d\te"):
        grown.append(Content(part))
    assert [row.content.plain for row in grown.rows] == [
        line.expandtabs(8) for line in ("ab\tc", "\td\te")
    ]


async def test_old_objects_are_not_searched_for_garbage_while_an_answer_is_written(
    open_chat, backend, script
):
    """That takes longer than a frame may."""
    usual = gc.get_threshold()
    backend.is_held = True
    try:
        async with open_chat(script("The", ([], [], " end"))) as chat:
            chat.screen.garbage.is_on = True
            backend.release(3)
            await chat.until(lambda: chat.screen.phase == "ready")
            await chat.ask("Go")
            await chat.until(lambda: chat.screen.phase == "answering")
            assert gc.get_freeze_count() > 0
            assert gc.get_threshold() == (*usual[:2], NEVER)
            backend.release(10)
            await chat.until(lambda: chat.screen.phase == "ready")
            assert gc.get_threshold() == usual
            chat.screen.garbage.collect_all()
            assert gc.get_freeze_count() == 0
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()
