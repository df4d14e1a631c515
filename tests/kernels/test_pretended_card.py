"""The engine's rounds on cards that are not there: Triton compiles what would run, nothing runs.

One pair and one card in the plain suite; `make cards` takes every card, format and number of
requests, and other versions of Triton. Each run is a process, since Triton keeps its driver.
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.gpu import ROOT  # which also makes gpu_parts known
from dspark_kernels.builds import MOST_SPILLED
from dspark_kernels.dependent_launch import MIN_CAPABILITY

CARDS = (80, 86, 89, 90, 120)
GOLDEN = tuple(
    f"golden:{variant}:{dtype}"
    for variant in ("vanilla", "gated", "rnn", "dflash", "dflash2", "domino")
    for dtype in ("bfloat16", "float32")
)
CODED = ("golden:vanilla:bfloat16:int8", "golden:vanilla:bfloat16:fp8")
FORMATS = ("4b:bf16", "4b:int8", "4b:int4", "4b:fp8", "4b:bf16:int8", "4b:bf16:fp8")
OF_GGUF = ("4b:q4_0", "4b:q4_1", "4b:q4_k", "4b:q8_0")
# nodes of the graphs of one request, plain step and round: lower them whenever they fall
BUDGETS = {
    "golden:vanilla:bfloat16": (44, 86),
    "4b:bf16": (296, 366),
    "8b:bf16": (296, 366),
    "14b:bf16": (328, 398),
}
V4_NODES = 162  # of four layers of DeepSeek-V4: lower it whenever it falls
# bytes a thread that may spill beyond what `make kernels` allows
MORE_SPILLS = {
    "skinny_linear_kernels.skinny_kernel": 32,  # 64 rows take all 255 registers
    # int4 by Triton 3.6: a real card says so, and the layer is launched kernel by kernel
    "persistent_layer_kernel.persistent_layer_kernel": 48,
}


def run_rounds(
    card: int, *pairs: str, options: tuple[str, ...] = (), switches: dict[str, str] | None = None
) -> dict[str, Any]:
    return run_module("rounds", "--card", str(card), *options, *pairs, switches=switches)


def run_module(name: str, *arguments: str, switches: dict[str, str] | None = None) -> Any:
    command = [sys.executable, "-W", "ignore", "-m", f"tests.kernels.pretended.{name}"]
    # Triton is asked for, although no card is there
    environment = {**os.environ, "DSPARK_KERNELS": "triton", **(switches or {})}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [*command, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def check(found: dict[str, Any]) -> None:
    """Only kernels that are also compiled ahead of time, each within what the card has."""
    assert found["unlisted"] == []
    spills = found["spills"].items()
    assert {n: stack for n, stack in spills if stack > MORE_SPILLS.get(n, MOST_SPILLED)} == {}
    assert found["beyond"] == []


def nodes(found: dict[str, Any], pair: str) -> tuple[int, int]:
    step, whole = (found["nodes"][pair][name] for name in ("plain step", "round"))
    return sum(step["finish"].values()), sum(whole["draft"].values()) + sum(
        whole["finish"].values()
    )


def is_within(found: tuple[int, int], budget: tuple[int, int]) -> bool:
    return all(count <= most for count, most in zip(found, budget, strict=True))


def test_a_pair_on_a_card():
    """That it ends at all says that a captured half neither waits for the card nor reads the
    host's memory."""
    pytest.importorskip("triton")
    pair = "golden:vanilla:bfloat16"
    found = run_rounds(90, pair, options=("--of-one",))
    check(found)
    assert found["variants"] > 20
    assert is_within(nodes(found, pair), BUDGETS[pair]), nodes(found, pair)


def test_every_kernel_of_a_round_is_ours_and_starts_early_and_waits_where_the_card_can():
    """Layers as wide as real ones, whose products are split, and one row of them."""
    pytest.importorskip("triton")
    found = run_rounds(90, "4b:bf16", options=("--of-one", "--layers", "2"))
    check(found)
    halves = [half for each in found["nodes"]["4b:bf16"].values() for half in each.values()]
    launched = {kernel for half in halves for kernel in half}
    assert launched == {*found["waiting"]}  # nothing of PyTorch's either
    assert all(found["waiting"].values())


def test_the_model_of_time_has_the_nodes_that_run():
    from gpu_parts.shapes import SHAPES
    from gpu_parts.time_model import round_nodes, step_nodes

    for shape in SHAPES:
        layers = (shape.num_layers, shape.num_draft_layers)
        modelled = (step_nodes(shape.num_layers), round_nodes(*layers))
        assert modelled == BUDGETS[f"{shape.name.removeprefix('Qwen3-').lower()}:bf16"]


def test_what_a_capture_forbids_is_found():
    pytest.importorskip("triton")
    import torch

    from tests.kernels.pretended.card import capturing

    numbers = torch.ones(4, device="meta")
    with capturing() as capture:
        numbers.view(2, 2).add_(1)
    assert capture.operations == {"add_": 1}
    for forbidden in (
        lambda: numbers.copy_(torch.ones(4)),
        lambda: torch.tensor([1, 2], device="meta"),
        lambda: torch.ones(4).to("meta"),
        lambda: numbers.sum().item(),
        lambda: numbers.tolist(),
        lambda: numbers[numbers > 0],
        lambda: numbers.nonzero(),
        lambda: numbers.repeat_interleave(numbers.long()),
    ):
        with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), capturing():
            forbidden()


@pytest.mark.cards
@pytest.mark.parametrize("card", CARDS)
def test_passes_of_deepseek_v4(card):
    """Four layers: captured without a wait, and without a launch of PyTorch's own."""
    found = run_module("deepseek_v4", "--card", str(card))
    check(found)
    kernels = {name: case["kernels"] for name, case in found["nodes"].items()}
    assert kernels["a row"] == kernels["eight rows"] < kernels["selects"] <= V4_NODES
    assert not any(case["torch"] for case in found["nodes"].values())


@pytest.mark.cards
@pytest.mark.parametrize("card", CARDS)
def test_every_golden_pair(card):
    check(run_rounds(card, *GOLDEN, *CODED))


@pytest.mark.cards
@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("formats", [FORMATS, OF_GGUF], ids=["numbers and codes", "gguf"])
def test_every_format(card, formats):
    check(run_rounds(card, *formats, options=("--layers", "2")))


@pytest.mark.cards
@pytest.mark.parametrize("card", CARDS)
def test_passes_of_rounds_that_the_host_leads(card):
    """Of every format: the layers, the first norm among them, the last one and the output head."""
    from gpu_parts.time_model import layer_nodes

    formats = [*FORMATS, *OF_GGUF]
    found = run_rounds(card, *formats, options=("--layers", "2", "--host-led", "--of-one"))
    check(found)
    for name in formats:
        launched = found["nodes"][name]["pass"]
        assert sum(launched.values()) == 2 * layer_nodes() + 2, (name, launched)
        assert "embedded_blocks.embedded_blocks_kernel" in launched


@pytest.mark.cards
def test_nodes_of_the_graphs():
    pairs = [pair for pair in BUDGETS if not pair.startswith("golden")]
    found = run_rounds(90, *pairs, options=("--of-one",))
    check(found)
    for pair in pairs:
        assert is_within(nodes(found, pair), BUDGETS[pair]), (pair, nodes(found, pair))


@pytest.mark.cards
@pytest.mark.parametrize("card", [card for card in CARDS if card >= MIN_CAPABILITY])
def test_layers_of_one_launch_each(card):
    """Where they are asked for: a launch for each layer behind the first, within what a card has,
    that waits as all others do."""
    pairs = ("4b:bf16", "4b:int4")
    options = ("--of-one", "--layers", "2")
    found = run_rounds(card, *pairs, options=options, switches={"DSPARK_PERSISTENT": "on"})
    check(found)
    kernel = "persistent_layer_kernel.persistent_layer_kernel"
    for pair in pairs:
        for halves in found["nodes"][pair].values():
            assert halves["finish"][kernel] == 1
            assert halves["finish"]["paged_attention.paged_attention_kernel"] == 1
    assert found["waiting"][kernel]


@pytest.mark.cards
@pytest.mark.parametrize("card", [card for card in CARDS if card >= MIN_CAPABILITY])
def test_a_layer_of_one_launch_adds_as_the_chain_does(card):
    """Attention's sums lie with the threads as in a kernel of its own; all others are of two."""
    found = run_module("layouts", "--card", str(card))
    assert found["whole"] == found["chain"] and len(found["chain"]) == 5
