"""What a library user calls: load by name, text or chat in, text, pieces or rounds out."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dspark
from dspark import hub
from dspark.errors import InputError, UnknownNameError
from dspark.events import Decided, FetchProgress, LoadProgress

CPU = dspark.RuntimeConfig("cpu", "float32")
WHOLE = dspark.EngineConfig(schedule=dspark.ScheduleConfig("full"))
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
]


@pytest.fixture
def pair(tiny_chat_dir: Path, make_tiny_head) -> Iterator[dspark.Session]:
    hub.register("mine", str(tiny_chat_dir), str(make_tiny_head(tiny_chat_dir)))
    with dspark.load("mine", runtime=CPU, engine=WHOLE) as session:
        yield session


def test_text_is_the_same_whole_in_pieces_and_in_events(pair):
    text = pair.generate_text("Hi", max_tokens=24)
    pieces = list(pair.stream_text("Hi", max_tokens=24))
    assert len(pieces) > 1 and "".join(pieces) == text
    events = list(pair.stream_events("Hi", max_tokens=24))
    finished = events[-1]
    assert isinstance(finished, dspark.Finished) and finished.text == text
    rounds = [event for event in events if isinstance(event, dspark.Round)]
    assert finished.stats.rounds == len(rounds) > 0


def test_a_text_is_a_chat_of_one_message(pair):
    once = [{"role": "user", "content": "Hi"}]
    assert pair.generate_text(once, max_tokens=9) == pair.generate_text("Hi", max_tokens=9)
    assert pair.encode_prompt("Hi") == pair.encode_chat(once)
    assert pair.encode_prompt(CHAT) == pair.encode_chat(CHAT) != pair.encode_prompt("Hi")
    assert pair.encode_prompt("Hi", is_raw=True) == pair.encode("Hi")


def test_options_reach_the_request(pair):
    sampled = [
        pair.generate_text("Hi", temperature=0.9, seed=seed, max_tokens=16) for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    plain = list(pair.stream_events("Hi", plain=True, max_tokens=12))
    assert not any(event.draft for event in plain if isinstance(event, dspark.Round))
    text = pair.generate_text("Hi", max_tokens=40)
    stop = text[5:7]
    assert pair.generate_text("Hi", max_tokens=40, stop=stop) == text[: text.index(stop)]
    assert pair.generate_text("Hi", max_tokens=40, stop=["never", stop]) == text[: text.index(stop)]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"max_tokens": 0},
        {"stop": ""},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(pair, options):
    with pytest.raises(InputError):
        pair.generate_text("Hi", **options)


@pytest.mark.parametrize("prompt", ["", " \n", []], ids=repr)
def test_an_empty_prompt_is_refused(pair, prompt):
    with pytest.raises(InputError, match="the prompt is empty"):
        pair.generate_text(prompt)


def test_loading_tells_its_steps(tiny_chat_dir):
    steps: list[object] = []
    session = dspark.follow(dspark.loading(str(tiny_chat_dir), runtime=CPU), steps.append)
    with session:
        assert isinstance(steps[0], Decided) and "no head is known" in steps[0].text
        assert {type(step) for step in steps[1:]} <= {FetchProgress, LoadProgress}
        assert isinstance(steps[-1], LoadProgress) and not session.has_drafter


def test_heads_are_chosen_as_on_the_command_line(tiny_chat_dir, make_tiny_head):
    head = make_tiny_head(tiny_chat_dir)
    texts = []
    for draft in (str(head), "lookup", "none"):
        with dspark.load(str(tiny_chat_dir), draft=draft, runtime=CPU, engine=WHOLE) as session:
            assert session.has_drafter is (draft != "none")
            texts.append(session.generate_text("Hi", max_tokens=16))
    assert texts[0] == texts[1] == texts[2]


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        dspark.load("demmo")
    assert "demo" in caught.value.hint


def test_importing_dspark_costs_nothing():
    code = (
        "import sys; before = set(sys.modules); import dspark; new = set(sys.modules) - before\n"
        "tops = {name.partition('.')[0] for name in new} - sys.stdlib_module_names\n"
        "assert tops == {'dspark'}, tops\n"
        "assert 'dspark.errors' not in sys.modules and dspark.DSparkError.__name__"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_name_is_there():
    assert set(dspark.__all__) <= set(dir(dspark))
    assert all(getattr(dspark, name) is not None for name in dspark.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = dspark.lode
