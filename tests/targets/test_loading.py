"""A target is read tensor by tensor and held once: no more is stated, and no more is taken."""

import weakref
from pathlib import Path

import pytest
import torch

from dspark.checkpoints import safetensors_dir
from dspark.checkpoints.safetensors_dir import StoredTensors, iterate_tensors
from dspark.errors import CheckpointError
from dspark.targets.load import load_target

TABLES = 2  # embedding and output head at most
LAYER = 12  # tensors of one layer
KEPT = ("o_proj", "down_proj")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_layer_of_plain_weights_at_a_time(
    tiny_qwen3_dir: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    highest = 0
    read = StoredTensors.__getitem__

    def counted(self: StoredTensors, name: str) -> torch.Tensor:
        nonlocal highest
        tensor = read(self, name)
        alive.append(weakref.ref(tensor))
        highest = max(highest, sum(each() is not None and each().dim() > 1 for each in alive))
        return tensor

    monkeypatch.setattr(StoredTensors, "__getitem__", counted)
    target = load_target(tiny_qwen3_dir, tap_layers=(), device=torch.device("cpu"), dtype=dtype)
    assert len(alive) == target.spec.num_layers * 11 + 3  # every tensor once
    assert highest <= TABLES + LAYER
    matrices = [each() for each in alive if each() is not None and each().dim() > 1]
    # in bfloat16 a weight that nothing is joined to stays the tensor that was read
    kept = 0 if dtype is torch.float32 else len(KEPT) * target.spec.num_layers
    assert len(matrices) == TABLES + kept


@torch.inference_mode()
def test_what_was_read_does_not_lie_in_the_file(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """A mapped file would count as memory, and a model would change with it."""
    copy = tmp_path / "model"
    copy.mkdir()
    for path in tiny_llama_dir.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    device = torch.device("cpu")
    target = load_target(copy, tap_layers=(), device=device, dtype=torch.float32)
    weights = copy / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(b"\x00" * (weights.stat().st_size // 2))
    ids = torch.arange(9)
    untouched = load_target(tiny_llama_dir, tap_layers=(), device=device, dtype=torch.float32)
    expected = untouched.prefill(untouched.open(), ids).logits
    assert torch.equal(target.prefill(target.open(), ids).logits, expected)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
        *(torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
        torch.bool,
    ],
)
def test_every_kind_of_number_comes_as_the_library_reads_it(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shapes = {"matrix": (3, 5), "row": (7,), "one": (), "none": (0, 4)}
    drawn = {n: torch.randint(0, 2, s).to(dtype) for n, s in shapes.items()}
    save_file(drawn, tmp_path / "model.safetensors")
    found = dict(iterate_tensors(tmp_path))
    assert found.keys() == drawn.keys() == load_file(tmp_path / "model.safetensors").keys()
    for name, tensor in found.items():
        assert tensor.dtype == dtype and tensor.shape == drawn[name].shape
        assert tensor.tolist() == drawn[name].tolist()
    assert {n: i.shape for n, i in safetensors_dir.tensor_infos(tmp_path).items()} == shapes


@pytest.mark.parametrize("model_type", ["emu3_text_model", "mllama_text_model", "vit"])
def test_what_is_no_text_model_is_refused_by_its_kind(model_type: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoConfig

    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_target(tmp_path, tap_layers=(), device=torch.device("cpu"), dtype=torch.float32)
    assert caught.value.message == (
        f"{tmp_path} is of the kind {model_type}, which transformers does not load as a text model"
    )
