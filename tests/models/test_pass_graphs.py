"""When a pass of DeepSeek-V4 is captured and replayed; a graph is a stand-in."""

import torch

from dspark.models.deepseek_v4 import pass_graphs
from dspark.models.deepseek_v4.pass_graphs import PassGraphs


class Card:
    """Counts what is run, captured and replayed by key."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def capture(self, function: pass_graphs.Replay) -> pass_graphs.Replay:
        result = function()
        self.told[-1] = self.told[-1].replace("run", "capture")

        def replay() -> torch.Tensor:
            self.told.append("replay")
            return result

        return replay

    def function(self, name: str) -> pass_graphs.Replay:
        def run() -> torch.Tensor:
            self.told.append(f"run {name}")
            return torch.tensor(ord(name))

        return run


def test_a_pass_runs_first_and_is_captured_when_it_comes_again() -> None:
    """Each way it runs once a call; other addresses are another pass."""
    card = Card()
    graphs = PassGraphs(card.capture)
    for name in "aabaab":
        assert graphs.run((name, 1), card.function(name)) == ord(name)
    a, b = ["run a", "capture a", "replay"], ["run b"]
    assert card.told == [*a, *b, "replay", "replay", "capture b", "replay"]


def test_what_cannot_be_captured_runs_each_time() -> None:
    card = Card()
    for graphs, key in ((PassGraphs(card.capture), None), (PassGraphs(None), "a")):
        for _ in range(3):
            graphs.run(key, card.function("a"))
    assert card.told == ["run a"] * 6


def test_graphs_of_addresses_that_are_gone_leave() -> None:
    card = Card()
    graphs = PassGraphs(card.capture)
    for number in range(pass_graphs.MOST_GRAPHS + 3):
        for _ in range(2):
            graphs.run(number, card.function("a"))
    assert len(graphs._replays) == pass_graphs.MOST_GRAPHS
    card.told.clear()
    graphs.run(0, card.function("b"))
    assert card.told == ["run b"]
