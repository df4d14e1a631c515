"""Drafts left to right in one call: what the head in numbers says, and the same bits everywhere."""

from dataclasses import dataclass

import pytest
import torch

from dspark_kernels.cpu.float_text import LANES
from dspark_kernels.cpu.sequential_head import (
    Noise,
    OwnColumns,
    SequentialPass,
    sequential_head,
    sequential_reference,
)
from dspark_kernels.noise import gumbel_row
from dspark_kernels.sequential_head import SequentialHead, draft_block_reference

HIDDEN, TOKENS, OWN, MOST = 64, 300, 20, 12


@dataclass
class Case:
    """A head, and blocks of R requests."""

    w1: torch.Tensor
    w2: torch.Tensor
    output: torch.Tensor
    ids: torch.Tensor
    confidence: torch.Tensor
    hidden: torch.Tensor
    owns: list[OwnColumns]
    anchors: torch.Tensor

    @property
    def row_columns(self) -> int:
        return -(-len(self.ids) // LANES) * LANES + OWN

    def head(self):
        tables = (self.w1, self.w2[self.ids]) if self.w1.shape[1] else None
        return sequential_head(tables, self.ids, (self.confidence, 0.25), HIDDEN)

    def logits(self) -> torch.Tensor:
        """Of the fixed columns, with room for those of the requests."""
        out = torch.full((*self.hidden.shape[:2], self.row_columns), float("nan"))
        out[..., : len(self.ids)] = self.hidden @ self.output[self.ids].t()
        return out


def case(num_requests=3, block_size=4, num_fixed=120, rank=24, reads_token=True) -> Case:
    generator = torch.Generator().manual_seed(num_requests + 10 * block_size + num_fixed)

    def new(*shape):
        return torch.randn(*shape, generator=generator)

    w1, w2, output = new(TOKENS, rank), new(TOKENS, rank), new(TOKENS, HIDDEN) * 0.2
    order = torch.randperm(TOKENS, generator=generator)
    width = HIDDEN + rank + -rank % 32
    owns = []
    for r in range(num_requests):
        rows, count = torch.zeros(OWN, width), (0, OWN, 7)[r % 3]
        ids = order[num_fixed : num_fixed + OWN].roll(r).contiguous()
        rows[:, :HIDDEN], rows[:, HIDDEN : HIDDEN + rank] = output[ids], w2[ids]
        rows[count:] = float("nan")  # nobody may look there
        owns.append(OwnColumns(rows, ids, count))
    confidence = new(HIDDEN + rank if reads_token else HIDDEN)
    hidden, anchors = new(num_requests, block_size, HIDDEN), order[:num_requests]
    ids = order[:num_fixed].sort().values
    return Case(w1, w2, output, ids, confidence, hidden, owns, anchors)


def run(runtime, this: Case, rows: slice, noise: Noise | None = None, extra: int = 0):
    """Some requests of a case; `extra` rows stand before those that predict."""
    size = this.hidden.shape[1]
    sizes = {"hidden_size": HIDDEN, "row_columns": this.row_columns, "block_size": size}
    program = SequentialPass(
        runtime, this.head(), **sizes, block_rows=size + extra, most=max(MOST, len(this.hidden))
    )

    def laid_out(values: torch.Tensor) -> torch.Tensor:
        padding = values.new_full((len(values), extra, values.shape[2]), float("nan"))
        return torch.cat([padding, values], dim=1).flatten(0, 1)

    logits = laid_out(this.logits()[rows])
    if noise is not None:
        noise = Noise(laid_out(noise.noise[rows]), noise.inverses[rows])
    found = program(laid_out(this.hidden[rows]), logits, this.anchors[rows], this.owns[rows], noise)
    return found, logits.unflatten(0, (-1, size + extra))[:, extra:]


def noise_of(this: Case) -> Noise:
    generator = torch.Generator().manual_seed(1)
    shape = (*this.hidden.shape[:2], this.row_columns)
    uniform = torch.rand(shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    temperatures = torch.tensor([0.7, 1.0, 2.0] * len(this.hidden))[: len(this.hidden)]
    return Noise(-(-uniform.log()).log(), 1.0 / temperatures)


SHAPES = {
    "demo": {},
    "one position": {"block_size": 1},
    "nine requests": {"num_requests": 9},
    "odd columns": {"num_fixed": 117},
    "few columns": {"num_fixed": 5},
    "whole groups": {"rank": 32},
    "two groups": {"rank": 40},
    "confidence of the hidden state": {"reads_token": False},
    "no tables": {"rank": 0},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("draws", [False, True])
def test_a_pass_is_its_reference(shape, draws, runtimes):
    this = case(**SHAPES[shape])
    noise = noise_of(this) if draws else None
    logits = this.logits()
    wanted = sequential_reference(this.head(), this.hidden, logits, this.anchors, this.owns, noise)
    assert len(wanted.tokens.unique()) > 1
    every = slice(0, len(this.hidden))
    for runtime in runtimes:
        for extra in (0, 1):
            found, filled = run(runtime, this, every, noise, extra)
            assert torch.equal(found.tokens, wanted.tokens), runtime.variant.name
            assert torch.equal(found.confidences, wanted.confidences)
            assert torch.equal(filled.nan_to_num(7e7), logits.nan_to_num(7e7))


def test_company_changes_no_bit(runtimes):
    this = case(num_requests=9)
    together, all_logits = run(runtimes[-1], this, slice(0, 9))
    for r in (0, 4, 8):
        alone, logits = run(runtimes[-1], this, slice(r, r + 1))
        assert torch.equal(alone.tokens[0], together.tokens[r])
        assert torch.equal(alone.confidences[0], together.confidences[r])
        assert torch.equal(logits[0].nan_to_num(7e7), all_logits[r].nan_to_num(7e7))


@pytest.mark.parametrize(("kind", "rank"), [("vanilla", 24), ("none", 0)])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_it_is_the_head_in_numbers_but_for_rounding(temperature, kind, rank, runtimes):
    """Beside the reference of the other kernels, over a vocabulary that all columns make up."""
    this = case(num_fixed=TOKENS - OWN, rank=rank)
    this.owns = [OwnColumns(own.rows, own.ids, 0) for own in this.owns]
    plain = SequentialHead(
        kind,
        w1=this.w1[this.ids] if rank else None,  # tokens there are columns
        w2=this.w2[this.ids] if rank else None,
        confidence_weight=this.confidence.unsqueeze(0),
        confidence_bias=torch.tensor([0.25]),
    )
    column_of = {int(token): column for column, token in enumerate(this.ids)}
    columns = torch.tensor([column_of[int(token)] for token in this.anchors])
    seeds, places = torch.arange(3) + 5, torch.tensor([4, 9, 30])
    wanted = draft_block_reference(
        this.hidden @ this.output[this.ids].t(),
        this.hidden,
        columns,
        plain,
        torch.full((3,), temperature),
        seeds,
        places,
    )
    noise = None
    if temperature:
        table = torch.zeros(3, 4, this.row_columns)
        for r in range(3):
            for k in range(4):
                row = gumbel_row(int(seeds[r]), int(places[r]) + k + 1, len(this.ids))
                table[r, k, : len(this.ids)] = row
        noise = Noise(table, torch.full((3,), 1 / temperature))
    found, logits = run(runtimes[0], this, slice(0, 3), noise)
    # weights and features of 8 and 16 bits, 24 of them; without tables nothing is rounded
    close = {"rtol": 0, "atol": 0.15 if rank else 1e-5}
    torch.testing.assert_close(logits[..., : len(this.ids)], wanted.logits, **close)
    assert torch.equal(found.tokens, this.ids[wanted.token_ids])
    assert wanted.confidence_logits is not None
    torch.testing.assert_close(found.confidences, wanted.confidence_logits, rtol=1e-5, atol=1e-5)
