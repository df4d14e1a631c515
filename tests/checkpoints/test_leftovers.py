"""Files of an earlier save beside newer ones: what transformers reads, or nothing; never in silence
the older weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dspark.checkpoints.model_folder import check_model_folder, count_parameters, read_shapes
from dspark.checkpoints.safetensors_dir import iterate_tensors, tensor_infos
from dspark.errors import CheckpointError

NAME = "model.layers.0.mlp.down_proj.weight"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One model whole in a file, another of the same shape in shards."""
    folders = []
    for seed, size in ((0, "5GB"), (1, "20KB")):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        config = LlamaConfig(vocab_size=64, num_attention_heads=2, num_key_value_heads=2, **sizes)
        folder = tmp_path_factory.mktemp("save")
        LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=size)
        folders.append(folder)
    assert (folders[1] / INDEX).exists()
    return folders[0], folders[1]


def together(folder: Path, *sources: Path, without: str = "") -> Path:
    """All files of the sources, the later ones over the earlier."""
    for source in sources:
        for path in source.iterdir():
            if not (without and path.match(without)):
                (folder / path.name).write_bytes(path.read_bytes())
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    assert check_model_folder(folder) == folder
    found = dict(iterate_tensors(folder))
    assert found.keys() == tensor_infos(folder).keys() == read_shapes(folder).keys()
    assert count_parameters(folder) == sum(tensor.numel() for tensor in found.values())
    return found


def test_an_index_without_its_shards_is_passed_over(saves, tmp_path) -> None:
    single, shards = saves
    folder = together(tmp_path, shards, single, without="model-0*")
    expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()[NAME]
    assert torch.equal(weights(folder)[NAME], expected)
    assert torch.equal(expected, load_file(single / SINGLE)[NAME])


def test_an_index_with_a_part_of_its_shards_too(saves, tmp_path) -> None:
    single, shards = saves
    folder = together(tmp_path, shards, single)
    next(iter(sorted(folder.glob("model-0*")))).unlink()
    assert torch.equal(weights(folder)[NAME], load_file(single / SINGLE)[NAME])


def test_two_whole_sets_are_refused_in_a_folder_of_ones_own(saves, tmp_path) -> None:
    folder = together(tmp_path, *saves)
    for attempt in (tensor_infos, check_model_folder, lambda each: list(iterate_tensors(each))):
        with pytest.raises(CheckpointError, match="two sets of weights") as failure:
            attempt(folder)
        assert "earlier save" in failure.value.hint
    (folder / SINGLE).unlink()
    assert weights(folder).keys() == load_file(saves[0] / SINGLE).keys()


def test_of_a_repository_transformers_choice_is_taken(saves, tmp_path) -> None:
    folder = tmp_path / "models--owner--model" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    together(folder, *saves)
    expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()[NAME]
    assert torch.equal(weights(folder)[NAME], expected)


def test_an_index_of_the_single_file_is_no_second_set(saves, tmp_path) -> None:
    single, _ = saves
    folder = together(tmp_path, single)
    names = load_file(single / SINGLE)
    (folder / INDEX).write_text(f'{{"weight_map": {{"{NAME}": "{SINGLE}"}}}}')
    assert weights(folder).keys() == names.keys()


def test_pickles_and_shards_of_no_index_beside_it_change_nothing(saves, tmp_path) -> None:
    single, shards = saves
    folder = together(tmp_path, single)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    shard = next(iter(sorted(shards.glob("model-0*"))))
    (folder / shard.name).write_bytes(shard.read_bytes())
    assert torch.equal(weights(folder)[NAME], load_file(single / SINGLE)[NAME])


def test_a_tensor_that_only_another_file_holds_is_missed(saves, tmp_path) -> None:
    folder = together(tmp_path, saves[0])
    save_file({"extra": torch.zeros(2)}, folder / "model-00001-of-00009.safetensors")
    assert "extra" not in weights(folder)
