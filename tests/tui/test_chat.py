"""The chat as a person meets it: the real app, keys pressed, and what stands on the terminal."""

from dataclasses import replace

import pytest

from dspark.chat.backend import ChatSettings, ContextFullError
from dspark.config import SamplingChoice
from dspark.errors import InputError


@pytest.fixture
def paris(script):
    return script(
        "The",
        ([" capital", " is"], [" Lyon", " now"], " Paris", (0.95, 0.8, 0.3, 0.1)),
        ([".", " Bonjour"], [], "!", (0.99, 0.4)),
    )


async def test_tokens_are_told_apart_by_colour_and_by_a_second_sign(open_chat, paris):
    async with open_chat(paris) as chat:
        await chat.asked_and_answered("What is the capital of France?")
        await chat.until_shown("The capital is Lyon now Paris. Bonjour!")
        accepted, rejected, own = (chat.style(text) for text in ("capital is", "Lyon now", "Paris"))
        assert len({accepted.color, rejected.color, own.color}) == 3
        assert accepted.underline and not accepted.strike
        assert rejected.strike and not rejected.underline
        assert not own.underline and not own.strike


async def test_the_legend_wears_the_signs_it_explains(open_chat, paris):
    async with open_chat(paris) as chat:
        await chat.asked_and_answered("Go")
        for word, sign in (
            ("accepted draft", "capital"),
            ("rejected draft", "Lyon"),
            ("the model's own", "Paris"),
        ):
            legend, token = chat.style(word), chat.style(sign)
            assert (legend.color, legend.underline, legend.strike) == (
                token.color,
                token.underline,
                token.strike,
            )


async def test_text_streams_round_by_round(open_chat, backend, paris):
    backend.is_held = True
    async with open_chat(paris) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("Go")
        backend.release(1)
        await chat.until_shown("The")
        assert "capital" not in chat.shown
        backend.release(1)
        await chat.until_shown("The capital is Lyon now Paris")
        assert "Bonjour" not in chat.shown
        backend.release(2)
        await chat.until_shown("Bonjour!")


async def test_escape_stops_and_keeps_what_was_written(open_chat, backend, paris, script):
    backend.is_held = True
    async with open_chat(paris, script("Again")) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("Go")
        backend.release(2)
        await chat.until_shown("Paris")
        await chat.pilot.press("escape")
        backend.release(1)
        await chat.until_shown("stopped")
        assert "Paris" in chat.shown and "Bonjour" not in chat.shown
        backend.release(2)
        await chat.asked_and_answered("More")
        # The next prompt is answered with the stopped answer as part of the conversation.
        assert [message["content"] for message in backend.asked[1]] == [
            "Go",
            "The capital is Paris",
            "More",
        ]


async def test_escape_before_the_first_word_gives_the_prompt_back(open_chat, backend, paris):
    backend.is_held = True
    async with open_chat(paris) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("Go")
        await chat.until(lambda: backend.asked)
        await chat.pilot.press("escape")
        backend.release(2)
        await chat.until(lambda: chat.prompt.text == "Go")
        assert chat.screen.conversation.turns == []


async def test_a_key_hides_rejected_drafts_and_brings_them_back(open_chat, paris):
    async with open_chat(paris) as chat:
        await chat.asked_and_answered("Go")
        await chat.pilot.press("ctrl+r")
        await chat.until_shown("The capital is Paris. Bonjour!", "rejected hidden")
        await chat.pilot.press("ctrl+r")
        await chat.until_shown("The capital is Lyon now Paris. Bonjour!")


async def test_hiding_also_holds_for_what_is_still_to_come(open_chat, backend, paris):
    backend.is_held = True
    async with open_chat(paris) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.pilot.press("ctrl+r")
        await chat.ask("Go")
        backend.release(5)
        await chat.until_shown("The capital is Paris. Bonjour!")


async def test_a_key_shades_drafts_by_confidence(open_chat, paris):
    async with open_chat(paris) as chat:
        await chat.asked_and_answered("Go")
        plain = chat.style("Paris").bgcolor
        assert {chat.style(word).bgcolor for word in ("capital", "Lyon", "Bonjour")} == {plain}
        await chat.pilot.press("ctrl+t")
        await chat.until(lambda: chat.style("capital").bgcolor != plain)
        sure, unsure, refused = (
            blueness(chat.style(word)) for word in ("capital", "Bonjour", "now")
        )
        assert sure > unsure > refused
        assert chat.style("Paris").bgcolor == plain
        assert chat.style("capital").underline and chat.style("Lyon").strike
        await chat.until_shown("unsure")
        await chat.pilot.press("ctrl+t")
        await chat.until(lambda: chat.style("capital").bgcolor == plain)


def blueness(style) -> int:
    return style.bgcolor.triplet.blue


async def test_the_status_line_tells_the_figures(open_chat, paris):
    async with open_chat(paris) as chat:
        await chat.asked_and_answered("Go")
        # 2 rounds of 0.05 s, 4 accepted of 6 verified, 7 tokens of which one is the prompt's.
        await chat.until_shown("demo", "cpu float32", "60.0 tok/s", "τ 3.00", "3.0 verified")
        await chat.until_shown("context 19/8,192")


async def test_the_status_line_moves_while_the_answer_streams(open_chat, backend, paris):
    backend.is_held = True
    async with open_chat(paris, size=(100, 24)) as chat:
        backend.release(3)
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.until_shown("– tok/s")
        await chat.ask("Go")
        backend.release(2)
        await chat.until_shown("60.0 tok/s", "τ 3.00", "4.0 verified per round", "context 16/8,192")


async def test_plain_decoding_claims_no_drafts(open_chat, backend, script):
    backend.has_drafter = False
    async with open_chat(script("The", ([], [], " end"))) as chat:
        await chat.until_shown("demo is ready", "Without a drafter")
        await chat.asked_and_answered("Go")
        await chat.until_shown("plain decoding, no drafts")
        assert "τ" not in chat.shown and "accepted" not in chat.shown


async def test_settings_and_system_text_reach_the_backend(open_chat, backend, paris):
    settings = ChatSettings(sampling=SamplingChoice(temperature=0.7, seed=3), system="Be brief.")
    async with open_chat(paris, settings=settings) as chat:
        await chat.asked_and_answered("Go")
    assert backend.sampling == [settings.sampling]
    assert backend.asked[0][0] == {"role": "system", "content": "Be brief."}


async def test_an_error_is_one_visible_line_with_its_hint_and_loses_nothing(
    open_chat, backend, script
):
    failing = script("", error=InputError("the model has hiccups", "Give it water."))
    async with open_chat(failing, script("Better")) as chat:
        await chat.asked_and_answered("Go")
        await chat.until_shown("✗ The model has hiccups", "Give it water.")
        assert chat.prompt.text == "Go"
        await chat.pilot.press("enter")
        await chat.until_shown("Better")
        assert len(backend.asked[1]) == 1


async def test_a_surprise_in_the_backend_is_a_line_too(open_chat, script):
    async with open_chat(script("Half", error=RuntimeError("boom\nat line 3"))) as chat:
        await chat.asked_and_answered("Go")
        await chat.until_shown("Half", "✗ RuntimeError: boom", "failed half-way")
        assert "boom … at line 3" in chat.shown
        assert chat.screen.conversation.turns == []


async def test_a_prompt_too_long_stays_in_the_box(open_chat, script):
    error = ContextFullError("the prompt has 9,000 tokens, the context holds 8,192", "Shorten it.")
    async with open_chat(script("", error=error)) as chat:
        await chat.asked_and_answered("a very long prompt")
        await chat.until_shown("✗ The prompt has 9,000 tokens", "Shorten it.")
        assert chat.prompt.text == "a very long prompt"


async def test_an_answer_cut_at_the_limit_says_so(open_chat, script):
    async with open_chat(replace(script("The", ([" end"], [], ".")), reason="max_tokens")) as chat:
        await chat.asked_and_answered("Go")
        await chat.until_shown("stopped at the maximum number of tokens")


async def test_an_empty_prompt_is_not_sent(open_chat, backend):
    async with open_chat() as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.ask("  \n ")
        await chat.pilot.pause()
        assert backend.asked == [] and chat.screen.turn is None


async def test_enter_sends_and_ctrl_j_starts_a_line(open_chat, backend, script):
    async with open_chat(script("Ok")) as chat:
        await chat.until(lambda: chat.screen.phase == "ready")
        await chat.pilot.press("a", "ctrl+j", "b", "shift+enter", "c", "enter")
        await chat.until(lambda: backend.asked)
        assert backend.asked[0][0]["content"] == "a\nb\nc"


async def test_markup_in_text_is_shown_as_it_is(open_chat, script):
    async with open_chat(script("[bold]", ([" [red]x[/red]"], [" [/]"], " [link=a]"))) as chat:
        await chat.asked_and_answered("[italic]Go[/italic] [/")
        await chat.until_shown("[italic]Go[/italic] [/", "[bold] [red]x[/red] [/] [link=a]")


async def test_control_characters_reach_the_terminal_from_nowhere(open_chat, backend, script):
    backend.name = "de\x1b]0;x\x07mo"
    failing = script("a\x1b[31mb", error=InputError("no \x1b[32m luck", ""))
    async with open_chat(failing) as chat:
        await chat.asked_and_answered("Go")
        await chat.until_shown("a␛[31mb", "No ␛[32m luck", "de␛]0;x␇mo")
        assert "\x1b" not in chat.shown and "\x07" not in chat.shown


async def test_wide_characters_wrap_within_a_narrow_terminal(open_chat, script):
    steps = [(["日本語も", "大丈夫"], ["👩‍🚀"], "é́ です。")] * 6
    async with open_chat(script("こんにちは", *steps), size=(40, 30)) as chat:
        await chat.asked_and_answered("話して")
        await chat.until_shown("こんにちは", "です。")
