"""A target whose weights stay packed, on the kernels: the float model's logits."""

from pathlib import Path

import pytest
import torch

from dspark.targets.load import load_target
from dspark_kernels import QuantizedWeight
from tests.targets.test_packed import write


@pytest.mark.parametrize("name", ["awq", "fp8"])
def test_packed_weights_are_multiplied_with(
    tmp_path: Path, device: torch.device, name: str
) -> None:
    model = write(tmp_path, "llama", name)
    target = load_target(tmp_path, tap_layers=(), device=device, dtype=torch.float32)
    first, *_ = target.decoder.layers  # type: ignore[attr-defined]
    assert isinstance(first.down.weight, QuantizedWeight)
    ids = torch.randint(0, 80, (5,))
    with torch.inference_mode():
        wanted = model(input_ids=ids[None]).logits[0]
        found = target.verify([target.open()], [ids.to(device)]).logits
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-4, rtol=1e-4)
