"""DeepSeek-V4's layers as a native program: the bits of every processor, and the torch modules."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.checkpoints.deepseek_v4 import read_mapped_head
from dspark.models.deepseek_v4.draft_pass import Context, DraftPass
from dspark.models.deepseek_v4.layer_program import LayerProgram
from dspark.models.deepseek_v4.native_pass import NativePass
from dspark.models.deepseek_v4.pass_memory import PassMemory
from dspark.models.deepseek_v4.rounded_experts import feed_rounded
from dspark.targets.deepseek_v4_native import DeepseekV4Target, load_deepseek_v4
from dspark_kernels.cpu.deepseek_v4.step import ROW_WORDS, STEP
from dspark_kernels.cpu.exact import fma
from dspark_kernels.cpu.processor import variants
from dspark_kernels.cpu.runtime import Op, Runtime, using
from tests.deepseek_v4_toy import write

TAPS = (1, 2, 3)
IDS = torch.randint(0, 96, (90,), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def runtimes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Runtime]]:
    """Every variant that this processor runs, the first on two threads as well."""
    if not variants():
        pytest.skip("no kernels for this processor")
    folder = tmp_path_factory.getbasetemp() / "kernels"
    with ExitStack() as closing:
        found = [Runtime(variant, 1, folder) for variant in variants().values()]
        found.append(Runtime(found[0].variant, 2, folder))
        for each in found:
            closing.callback(each.close)
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v4")
    write(folder)
    return folder


def passes(target: DeepseekV4Target) -> list[torch.Tensor]:
    """Logits and taps of a prompt and of a block of each of two requests."""
    slots = [target.open(), target.open()]
    found = [target.prefill(slot, IDS[:end]) for slot, end in zip(slots, (70, 23), strict=True)]
    found.append(target.verify(slots, [IDS[70:76], IDS[23:27]]))
    for slot in slots:
        target.close(slot)
    return [each for passed in found for each in (passed.logits, passed.taps)]


@torch.inference_mode()
@pytest.mark.parametrize("rounds", [False, True], ids=["float32", "fp4"])
def test_every_processor_has_the_same_bits(
    runtimes: list[Runtime], folder: Path, rounds: bool
) -> None:
    expected = None
    for runtime in runtimes:
        with using(runtime):
            found = passes(load_deepseek_v4(folder, tap_layers=TAPS, rounds=rounds))
        expected = expected or found
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@torch.inference_mode()
def test_without_kernels_torch_does_the_same(
    folder: Path, runtimes: list[Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    with using(runtimes[0]):
        native = passes(load_deepseek_v4(folder, tap_layers=TAPS))
        monkeypatch.setattr("dspark.models.deepseek_v4.decoder.is_supported", lambda config: False)
        plain = passes(load_deepseek_v4(folder, tap_layers=TAPS))
    for found, expected in zip(native, plain, strict=True):
        atol = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@torch.inference_mode()
def test_scores_of_long_texts_are_made_in_parts(
    folder: Path, runtimes: list[Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """70 positions by 4 are 17 entries; with room for 64 scores a pass has 3 rows."""
    counts: list[int] = []
    original = NativePass.run_rows

    def counted(self: NativePass, embedded: torch.Tensor, *rest: Any) -> Any:
        counts.append(len(embedded))
        return original(self, embedded, *rest)

    monkeypatch.setattr(NativePass, "run_rows", counted)
    with using(runtimes[0]):
        target = load_deepseek_v4(folder, tap_layers=TAPS)
        expected = passes(target)
        assert counts == [70, 23, 10]
        monkeypatch.setattr("dspark.checkpoints.deepseek_v4_cache_layout.INDEX_SCORES", 64)
        found = passes(target)
    assert counts[3:27] == [3] * 23 + [1]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert target._decoder.routes.shape[1] == 10


@torch.inference_mode()
def test_routed_experts_are_those_of_the_reference(runtimes: list[Runtime], folder: Path) -> None:
    """Grouped by expert in the program itself, and added up in the order of the route, each by one
    fma with its share: to the bit."""
    target = load_deepseek_v4(folder, tap_layers=())
    config, block = target._decoder._config, target._weights.blocks[1]
    generator = torch.Generator().manual_seed(2)
    memory, num_rows = PassMemory(config, 16, 0), 11
    memory.x[:num_rows] = torch.randn(num_rows, config.hidden_size, generator=generator)
    memory.y[:num_rows] = torch.randn(num_rows, config.hidden_size, generator=generator)
    memory.routes[1, :num_rows] = torch.rand(num_rows, 6, generator=generator).argsort(1)[:, :2]
    memory.shares.copy_(torch.rand(memory.shares.shape, generator=generator))
    x, ids, expected = memory.x[:num_rows], memory.routes[1, :num_rows], memory.y[:num_rows].clone()
    with using(runtimes[0]):
        said = feed_rounded(x, ids, block.experts, config.swiglu_limit)
    for place in range(2):
        expected = fma(said[:, place], memory.shares[:num_rows, place, None], expected)
    layer = LayerProgram(config, 1, block, memory, False)
    adding = next(layer.after_experts(None))
    shared = memory.y[:num_rows].clone()
    for runtime in runtimes:
        memory.y[:num_rows] = shared
        runtime.run([*layer.feed_experts(), adding], num_rows)
        assert torch.equal(memory.y[:num_rows], expected)


@torch.inference_mode()
def test_every_processor_drafts_the_same(runtimes: list[Runtime], folder: Path) -> None:
    config, weights = read_mapped_head(folder)
    generator, found = torch.Generator().manual_seed(7), []
    taps = torch.randn(20, config.tap_width, generator=generator)
    embedded = torch.randn(config.block_size, config.hidden_size, generator=generator)
    for runtime in runtimes:
        drafts = DraftPass(config, weights, None, runtime)
        rings = torch.full((drafts.num_values,), torch.nan)
        drafts.take_in(Context(rings, 0, 0), taps)
        found.append(drafts.run(embedded, [Context(rings, 0, 20)]))
    for each in found:
        assert all(torch.equal(a, b) for a, b in zip(each, found[0], strict=True))
    assert found[0][0].isfinite().all()


def rows_step(positions: list[int], **words: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Records of rows, and a step that points to them."""
    records = torch.zeros(len(positions), ROW_WORDS, dtype=torch.int64)
    records[:, 0] = torch.tensor(positions)
    found = {"rows": len(positions), "table": records.data_ptr(), **words}
    return records, torch.tensor([found.get(name, 0) for name in STEP])


@pytest.mark.parametrize(
    "scores",
    [
        [1.0, 5.0, 2.0, 2.0, -1.0, 2.0, 0.0],
        [-3.0, -3.0, -3.0, -3.0, -3.0, -3.0, -3.0],
        [1e-40, -1e-40, 3e38, -3e38, 0.0, 1e-38, 7.0],
        [0.5, 0.25, -0.5, -0.25, 0.125, 4.0, 4.0],
    ],
    ids=["ties", "equal", "extremes", "signs"],
)
def test_of_equal_scores_the_first_entries_are_taken(
    runtimes: list[Runtime], scores: list[float]
) -> None:
    """A row at position 13 sees seven windows of two; one at 5 sees three, which are not chosen."""
    top, ratio = 3, 2
    memory = torch.tensor([scores, scores])
    places = {"scores": memory.data_ptr(), "scores_bytes": 4 * len(scores)}
    records, step = rows_step([13, 5], **places)
    best = sorted(range(len(scores)), key=lambda i: (-memory[0, i].item(), i))[:top]
    for runtime in runtimes:
        chosen = torch.full((2, top), -1)
        runtime.run([Op("index_choose", 0, 1, (chosen, ratio, top))], 2, step)
        assert chosen.tolist() == [sorted(best), [-1] * top]
    assert len(records) == 2


def test_routes_are_the_published_formula(runtimes: list[Runtime], folder: Path) -> None:
    """Scores from sqrt(softplus) in float64, over logits from -80 to 80; the bias only chooses."""
    target = load_deepseek_v4(folder, tap_layers=())
    config, block = target._decoder._config, target._weights.blocks[1]
    logits = torch.linspace(-80.0, 80.0, 6 * 40)[torch.randperm(240)].view(40, 6)
    logits[:20] = torch.randn(20, 6, generator=torch.Generator().manual_seed(9))
    scores = torch.nn.functional.softplus(logits.double(), threshold=1000).sqrt()
    bias = block.tensors["ffn.gate.bias"].double()
    expected = (scores + bias).topk(2).indices
    shares = scores.gather(1, expected)
    shares = shares / (shares.sum(1, keepdim=True) + 1e-20) * config.routed_scale
    for runtime in runtimes:
        memory = PassMemory(config, 40, 0)
        memory.logits[:, 0, :6] = logits
        records, step = rows_step([0] * 40)
        runtime.run([LayerProgram(config, 1, block, memory, False)._route()], 40, step)
        assert torch.equal(memory.routes[1], expected) and len(records) == 40
        found = memory.logits[:, 0, :6].double()
        torch.testing.assert_close(found, scores, rtol=1e-6, atol=1e-17)
        torch.testing.assert_close(memory.shares.double(), shares, rtol=1e-6, atol=1e-17)
