"""Settings changed in the chat, shown, and kept with it."""

import pytest

from dspark.chat import settings as chat_settings
from dspark.chat.backend import ChatSettings, OtherModels
from dspark.chat.sessions.store import ChatStore
from dspark.config import SamplingChoice, ScheduleConfig, StopConfig
from dspark.errors import DSparkError, InputError
from tests.tui.conftest import ScriptedBackend


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("temperature 0.7", ChatSettings(sampling=SamplingChoice(temperature=0.7))),
        ("parameter temperature 0", ChatSettings(sampling=SamplingChoice(temperature=0.0))),
        ("top-p 0.9", ChatSettings(sampling=SamplingChoice(top_p=0.9))),
        ("top_k 40", ChatSettings(sampling=SamplingChoice(top_k=40))),
        ("seed 3", ChatSettings(sampling=SamplingChoice(seed=3))),
        ("num_predict 100", ChatSettings(stop=StopConfig(max_tokens=100))),
        ('system "You are kind."', ChatSettings(system="You are kind.")),
        ("schedule full", ChatSettings(schedule=ScheduleConfig("full"))),
        ("schedule 0.4", ChatSettings(schedule=ScheduleConfig("threshold", 0.4))),
    ],
)
def test_a_setting_is_changed_and_undone_and_stored(words, expected):
    given = ChatSettings()
    changed = chat_settings.set_by_words(given, words)
    assert changed == expected
    stored = chat_settings.from_json(chat_settings.as_json(changed), given)
    assert (stored.sampling, stored.stop, stored.system) == (
        expected.sampling,
        expected.stop,
        expected.system,
    )
    name = words.removeprefix("parameter ").split()[0]
    undone = chat_settings.set_by_words(changed, f"{name} default")
    assert undone in (given, ChatSettings(schedule=ScheduleConfig()))


@pytest.mark.parametrize(
    "words",
    [
        *("", "seed", "nothing 3", "temperature hot", "temperature nan", "temperature -1"),
        *("top_p 0", "top_k 1.5", "max_tokens 0", "schedule fast", "schedule 2", "seed -1"),
    ],
)
def test_what_is_no_value_is_refused(words):
    with pytest.raises(InputError):
        chat_settings.set_by_words(ChatSettings(), words)


def test_the_command_line_comes_before_what_is_stored():
    stored = '{"system": "Old", "temperature": 0.5, "seed": "odd", "max_tokens": 7, "x": 1}'
    given = ChatSettings(sampling=SamplingChoice(temperature=1.0))
    settings = chat_settings.from_json(stored, given)
    assert settings.sampling == SamplingChoice(temperature=1.0)
    assert (settings.system, settings.stop.max_tokens) == ("Old", 7)
    assert chat_settings.from_json("[broken", given) == given


async def test_a_setting_holds_for_the_next_answer_and_is_shown(open_chat, backend, script):
    store = ChatStore()
    async with open_chat(script("A"), script("B"), store=store, size=(120, 40)) as chat:
        await chat.asked_and_answered("Go")
        for words in ("temperature 0.7", "system Be kind.", "schedule full", "top_p 0.8", "seed 5"):
            await chat.ask(f"/set {words}")
            await chat.until_shown(words.split()[0])
        await chat.until_shown("temperature 0.7")
        await chat.asked_and_answered("More")
        assert backend.sampling[-1] == SamplingChoice(temperature=0.7, top_p=0.8, seed=5)
        assert backend.asked[-1][0] == {"role": "system", "content": "Be kind."}
        assert backend.schedules == [ScheduleConfig("full")]
        await chat.ask("/show")
        await chat.until_shown("system       Be kind.", "top_p        0.8", "seed         5")
        assert '"temperature": 0.7' in store.settings(1)
    async with open_chat(script("C"), store=store, first_chat=1) as chat:
        await chat.asked_and_answered("Again")
        assert backend.sampling[-1] == SamplingChoice(temperature=0.7, top_p=0.8, seed=5)
        assert backend.asked[-1][0]["content"] == "Be kind."


async def test_a_wrong_value_stays_in_the_box_to_be_mended(open_chat, backend):
    async with open_chat(size=(120, 24)) as chat:
        await chat.until_shown("demo is ready")
        await chat.ask("/set temperature hot")
        await chat.until_shown("'hot' is not a value of temperature. It takes 0 to 2")
        assert chat.prompt.text == "/set temperature hot"


async def test_the_chat_goes_on_with_another_model(open_chat, backend, script):
    other = ScriptedBackend([script("B")], name="bigger", loading=())

    def open_model(name):
        if name != "bigger":
            raise DSparkError(f"there is no model {name}")
        return other

    models = OtherModels(lambda: ["demo", "bigger"], open_model)
    async with open_chat(script("A"), models=models, size=(120, 24)) as chat:
        await chat.asked_and_answered("Go")
        titles = [each.title for each in chat.app.get_system_commands(chat.screen)]
        assert "Model: bigger" in titles
        await chat.ask("/model nothing")
        await chat.until_shown("There is no model nothing.")
        chat.prompt.clear()
        commands = chat.app.get_system_commands(chat.screen)
        change = next(each.callback for each in commands if each.title == "Model: bigger")
        await change()  # as the palette does
        await chat.until(lambda: chat.screen.status.model == "bigger")
        await chat.asked_and_answered("More")
        assert backend.is_closed and [m["content"] for m in other.asked[0]] == ["Go", "A", "More"]


async def test_a_chat_without_other_models_says_so(open_chat):
    async with open_chat() as chat:
        await chat.until_shown("demo is ready")
        await chat.ask("/model bigger")
        await chat.until_shown("cannot change it")
