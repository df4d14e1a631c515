"""What a captured call does around the capture; the graph itself is a stand-in without a card."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from dspark.engine.rounds.cuda_graph import GraphedCall, graph_pool
from dspark.errors import DSparkError


class FakeGraph:
    """Replays what was called while it was captured."""

    def __init__(self) -> None:
        self.replayed = 0

    def replay(self) -> None:
        self.replayed += 1


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    made: list[FakeGraph] = []

    @contextmanager
    def capturing(graph, pool):
        made.append(graph)
        yield

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    return made


def test_the_run_that_compiles_does_not_count(fake_cuda):
    state, seen = torch.zeros(3), []

    def advance() -> torch.Tensor:
        seen.append(state.tolist())
        return state.add_(1)

    call = GraphedCall(advance, (state,), pool="pool")
    assert call() is call() is state
    # once to compile and once under capture, where a card only records
    assert seen == [[0, 0, 0], [0, 0, 0]]
    assert [graph.replayed for graph in fake_cuda] == [2]


def test_a_failed_capture_names_the_way_out(fake_cuda):
    def fail() -> torch.Tensor:
        raise RuntimeError("operation not permitted\nmore of it")

    with pytest.raises(DSparkError, match="operation not permitted") as caught:
        GraphedCall(fail, (), pool="pool")()
    assert "DSPARK_GRAPHS=off" in str(caught.value.hint)


def test_without_a_card_or_switched_off_it_is_a_plain_call(monkeypatch):
    assert graph_pool(torch.device("cpu")) is None
    monkeypatch.setenv("DSPARK_GRAPHS", "off")
    assert graph_pool(torch.device("cuda")) is None
    assert GraphedCall(lambda: 7, (), None)() == 7
