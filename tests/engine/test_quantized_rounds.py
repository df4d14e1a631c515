"""Quantized targets over pages: rounds led by device or host write plain decoding's text."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dspark.checkpoints.heads import read_any_config
from dspark.engine.loop import Engine
from dspark.engine.rounds.captured_host import CapturedHostRounds
from dspark.engine.rounds.device import DeviceRounds
from dspark.engine.schedule.policies import FullSchedule
from dspark.engine.session import load_drafter
from dspark.events import Finished
from dspark.models.decoder import FusedLayer
from dspark.targets.dense import DenseTarget
from dspark.targets.dense_files import load_dense, read_config
from dspark_kernels import QuantizedWeight, SkinnyLinear
from dspark_kernels.quantized_weight import quantize_fp8, quantize_int4, quantize_int8
from tests.engine.paged import paged  # noqa: F401
from tests.engine.pairs import GOLDEN, PROMPT, decode, request

pytestmark = pytest.mark.usefixtures("paged")
Quantize = Callable[[torch.Tensor], QuantizedWeight]
FORMATS: dict[str, Quantize] = {
    "int8": quantize_int8,
    "int4": lambda weight: quantize_int4(weight, 16),
    "fp8": quantize_fp8,
}
ASKS = [request(PROMPT[: 3 + 4 * i], 12 + i) for i in range(2)]
SEEDED = {"temperature": 0.8, "seed": 11}


def engine_of(variant: str, format_name: str) -> Engine:
    folder = GOLDEN / variant
    target = load_dense(
        folder / "target",
        read_config(folder / "target"),
        tap_layers=read_any_config(folder / "draft").target_layer_ids,
        device=torch.device("cpu"),
        dtype=torch.float32,
        prepack=False,
    )
    quantize_layers(target, FORMATS[format_name])
    return Engine(target, load_drafter(folder / "draft", target), FullSchedule())


def quantize_layers(target: DenseTarget, quantize: Quantize) -> None:
    def quantized(layer: FusedLayer) -> FusedLayer:
        names = ("qkv", "output", "gate_up", "down")
        linears = {name: getattr(layer, name) for name in names}
        made = {
            name: SkinnyLinear(quantize(linear.weight), linear.bias, prepack=False)
            for name, linear in linears.items()
        }
        return replace(layer, **made)

    target.decoder.layers = [quantized(layer) for layer in target.decoder.layers]


@pytest.mark.parametrize(
    ("variant", "format_name", "sampling"),
    [
        ("vanilla", "int8", {}),
        ("vanilla", "int4", SEEDED),
        ("vanilla", "fp8", {}),
        ("eagle3", "int8", SEEDED),
        ("eagle3", "int4", {}),
        ("eagle3", "fp8", SEEDED),
    ],
)
def test_drafts_change_nothing(variant, format_name, sampling):
    """Together and alone; and some drafts are accepted, though the head was trained beside
    numbers."""
    engine = engine_of(variant, format_name)
    leader = DeviceRounds if variant == "vanilla" else CapturedHostRounds
    assert isinstance(engine._rounds, leader)
    asks = [replace(ask, sampling=replace(ask.sampling, **sampling)) for ask in ASKS]
    wanted = decode(Engine(engine.target, None, FullSchedule()), asks)
    ended = [event for event in engine.run(asks) if isinstance(event, Finished)]
    assert sum(e.stats.rounds for e in ended) < sum(len(e.token_ids) for e in ended)
    assert [e.token_ids for e in sorted(ended, key=lambda e: e.request_id)] == wanted
    assert [decode(engine, [ask])[0] for ask in asks] == wanted
