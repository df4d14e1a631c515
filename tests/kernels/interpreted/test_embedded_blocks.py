"""Rows of the embedding and their norm, in one kernel, against a lookup and the norm's kernel."""

import pytest
import torch

from dspark_kernels import EmbeddedBlocks, ResidualStream


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [63, 512])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_the_first_norm_looks_rows_up(device, dtype, width, count):
    table = torch.randn(50, width, device=device).to(dtype)
    weight = torch.randn(width, device=device).to(dtype)
    first = torch.tensor([[49, 1], [0, 1], [7, 1]], device=device)[:, 0]
    drafts = torch.randint(50, (3, 6), device=device)[:, :count]  # a part of wider rows
    masks = torch.full((1, 1), 13, device=device).expand(3, count)
    for rest in (None,) if count == 0 else (drafts, masks):
        blocks = EmbeddedBlocks(table, first, rest)
        ids = torch.cat([first[:, None]] + ([] if rest is None else [rest]), dim=1).flatten()
        assert blocks.num_rows == len(ids) and torch.equal(blocks.token_ids(), ids)
        taps = torch.full((len(ids), 3, width), float("nan"), device=device, dtype=dtype)
        normed, stream = blocks.normed(weight, 1e-6, taps[:, 1])
        assert torch.equal(stream.total, table[ids])
        assert torch.equal(taps[:, 1], table[ids])
        assert taps[:, ::2].isnan().all()
        assert torch.equal(normed, ResidualStream(table[ids]).normed(weight, 1e-6)[0])
