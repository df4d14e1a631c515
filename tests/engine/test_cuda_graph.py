"""What a captured call does around the capture; the graph itself is a stand-in without a card."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from dspark.engine.machine_errors import is_of_the_machine
from dspark.engine.rounds.cuda_graph import GraphedCall, GraphPool, graph_pool
from dspark.errors import CaptureError


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
    def capturing(graph, pool, capture_error_mode):
        assert capture_error_mode == "thread_local"  # others may use CUDA meanwhile
        made.append(graph)
        yield

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "a handle")
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

    call = GraphedCall(advance, (state,), GraphPool())
    assert call() is call() is state
    # once to compile and once under capture, where a card only records
    assert seen == [[0, 0, 0], [0, 0, 0]]
    assert [graph.replayed for graph in fake_cuda] == [2]


TRITON_SAYS = """at 5:10:
    x = tl.load(at)
              ^
cannot take shape [3]"""


def failure(words: str, module: str = "builtins") -> Exception:
    kind = type("Failure", (RuntimeError if module == "builtins" else Exception,), {})
    kind.__module__ = module
    return kind(words)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            failure("CUDA error: operation not permitted\nCompile with ..."),
            "(CUDA error: operation",
        ),
        (failure(TRITON_SAYS, "triton.compiler.errors"), "cannot take shape [3])"),
        (failure("long\n" * 400 + "No space left", "triton.x"), "No space left)"),
    ],
    ids=["torch", "triton", "long"],
)
def test_a_failed_capture_names_the_reason_and_the_way_out_and_is_the_last(fake_cuda, error, told):
    """PyTorch's reason is in the first line, Triton's in the last. A pool in which a capture failed
    takes no other."""
    calls = []

    def fail() -> torch.Tensor:
        calls.append(1)
        raise error

    pool = GraphPool()
    with pytest.raises(CaptureError) as caught:
        GraphedCall(fail, (), pool)()
    assert told in caught.value.message and len(caught.value.message) < 500
    assert "DSPARK_GRAPHS=off" in caught.value.hint
    assert is_of_the_machine(caught.value)
    with pytest.raises(CaptureError, match="captured"):
        GraphedCall(fail, (), pool)()
    assert len(calls) == 1


def test_without_a_card_or_switched_off_it_is_a_plain_call(monkeypatch):
    assert graph_pool(torch.device("cpu")) is None
    monkeypatch.setenv("DSPARK_GRAPHS", "off")
    assert graph_pool(torch.device("cuda")) is None
    assert GraphedCall(lambda: 7, (), None)() == 7
