"""What DeepSeek-V4's blocks round, and that experts are grouped without a trace of it."""

from types import SimpleNamespace

import pytest
import torch

from dspark.checkpoints.deepseek_v4_target import Expert
from dspark.models.deepseek_v4.float_experts import feed, feed_experts
from dspark.models.deepseek_v4.indexer import Indexer
from dspark.models.deepseek_v4.rounded_experts import feed_rounded
from dspark.models.deepseek_v4.row_wise import ordered_sum, unit
from dspark.models.deepseek_v4.window_attention import fake_quantize_e4m3
from dspark_kernels.cpu.clamped_swiglu import clamped_swiglu_reference
from dspark_kernels.cpu.file_weight import FileWeight, file_weight
from dspark_kernels.cpu.int8_rows import Int8Rows, round_int8_reference
from dspark_kernels.cpu.mxfp4 import Segment, multiply_segment_reference


def test_fake_quantisation_keeps_what_e4m3_can_say_and_rounds_the_rest() -> None:
    exact = torch.tensor([448.0, -1.0, 0.5, 0.0] * 16)
    assert torch.equal(fake_quantize_e4m3(exact, 64), exact)
    assert torch.equal(fake_quantize_e4m3(exact / 4.0, 64), exact / 4.0)
    # 449 needs the scale 2: 449 / 2 = 224.5 lies between 224 and 240
    assert fake_quantize_e4m3(torch.tensor([449.0] * 64), 64)[0] == 448.0
    tiny = torch.full((64,), 1e-6)  # the scale stops at the one of 1e-4
    assert fake_quantize_e4m3(tiny, 64)[0] == 4.0 * 2**-22  # 4.19 rounds to 4


HIDDEN, INNER, LIMIT = 64, 32, 2.0


def random_experts(count: int) -> list[Expert]:
    generator = torch.Generator().manual_seed(7)

    def weight(rows: int, columns: int) -> FileWeight:
        codes = torch.randint(0, 256, (rows, columns // 2), generator=generator)
        scales = torch.randint(122, 126, (rows, columns // 32), generator=generator)
        return file_weight(codes.to(torch.uint8), scales.to(torch.uint8), 1, 32)

    return [
        Expert(weight(INNER, HIDDEN), weight(INNER, HIDDEN), weight(HIDDEN, INNER))
        for _ in range(count)
    ]


def one_rounded(x: torch.Tensor, expert: Expert) -> torch.Tensor:
    """One row [H] through one expert, by the references of each step."""

    def times(rows: Int8Rows, weight: FileWeight) -> torch.Tensor:
        out = torch.empty(1, weight.shape[0])
        multiply_segment_reference(rows, Segment(weight, torch.tensor([0]), out))
        return out

    rows = round_int8_reference(x.unsqueeze(0))
    gate_up = torch.cat([times(rows, expert.gate), times(rows, expert.up)], dim=1)
    return times(clamped_swiglu_reference(gate_up, LIMIT), expert.down)[0]


def test_experts_of_many_rows_are_those_of_each_row_alone() -> None:
    experts, generator = random_experts(5), torch.Generator().manual_seed(3)
    x = torch.randn(6, HIDDEN, generator=generator)
    expert_ids = torch.stack([torch.randperm(5, generator=generator)[:3] for _ in range(6)])
    rounded, exact = (
        function(x, expert_ids, experts, LIMIT) for function in (feed_rounded, feed_experts)
    )
    for row in range(6):
        for place, number in enumerate(expert_ids[row].tolist()):
            expert = experts[number]
            assert torch.equal(rounded[row, place], one_rounded(x[row], expert))
            alone = feed(x[row : row + 1], expert.gate, expert.up, expert.down, LIMIT)
            assert torch.equal(exact[row, place], alone[0])


def test_float_experts_are_the_published_formula() -> None:
    expert, x = random_experts(1)[0], torch.randn(3, HIDDEN, generator=torch.manual_seed(0))
    gate, up, down = (each.dequantized().double() for each in (expert.gate, expert.up, expert.down))
    gated = torch.nn.functional.silu((x.double() @ gate.t()).clamp(max=LIMIT))
    expected = (gated * (x.double() @ up.t()).clamp(-LIMIT, LIMIT)) @ down.t()
    found = feed(x, expert.gate, expert.up, expert.down, LIMIT).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100])
def test_sums_in_order_are_sums(size: int) -> None:
    x = torch.randn(3, size, 2, generator=torch.Generator().manual_seed(size))
    exact = x.double().sum(1, keepdim=True)
    torch.testing.assert_close(ordered_sum(x, 1).double(), exact, rtol=0, atol=1e-5)
    assert torch.equal(ordered_sum(x, 1)[1], ordered_sum(x[1:2], 1)[0])
    assert float(unit(x, 0.0).square().mean(-1).sub(1).abs().max()) < 1e-6


def test_of_equal_scores_the_first_entries_are_taken() -> None:
    block = SimpleNamespace(
        matrices={f"attn.indexer.{n}.weight": 0 for n in ("wq_b", "weights_proj")}
    )
    indexer = Indexer(SimpleNamespace(index_top=3, index_dim=4), block)  # type: ignore[arg-type]
    query, weights = torch.ones(2, 4), torch.ones(2)
    keys = torch.tensor([1.0, 5.0, 2.0, 2.0, -1.0, 2.0]).unsqueeze(1).expand(6, 4)
    assert indexer.best(query, weights, keys).tolist() == [1, 2, 3]
    assert indexer.best(query, weights, -keys.abs()).tolist() == [0, 1, 2]  # relu: all equal
