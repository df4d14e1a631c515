"""The real demo pair, from the package index to an answer."""

import pytest
import torch

from dspark import hub
from dspark.hub.footprint import of_folders, of_pair

Q4_1_BYTES, Q8_0_BYTES = 20 / 32, 34 / 32  # of a number, its scales included


def test_the_catalogue_states_the_codes_of_the_demo() -> None:
    """From the shapes of a Llama with 30 layers, an MLP of 1,536 and three heads of 64 for keys."""
    hidden, keys, inner, words = 576, 3 * 64, 1536, 49_152
    layers = 30 * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner)
    of = of_pair(hub.PAIRS["demo"])
    assert of is not None and of.inner_size == inner
    assert of.gpu_coded_values == layers and of.gpu_coded_bytes == layers * Q4_1_BYTES
    assert of.coded_values == layers + words * hidden
    assert of.coded_bytes == layers * Q4_1_BYTES + words * hidden * Q8_0_BYTES


@pytest.mark.demo
def test_the_demo_needs_the_same_memory_before_it_is_fetched(demo_files: hub.PairFiles) -> None:
    assert of_pair(hub.PAIRS["demo"]) == of_folders(demo_files.target, demo_files.draft)


@pytest.mark.demo
def test_the_demo_target_knows_the_capital_of_france(demo_files: hub.PairFiles) -> None:
    from transformers import AutoTokenizer

    from dspark.targets.hf_model import read_hf_model

    files = demo_files
    assert hub.folder_bytes(files.target) == hub.PAIRS["demo"].target_num_bytes
    tokenizer = AutoTokenizer.from_pretrained(files.target)
    model = read_hf_model(files.target, device=torch.device("cpu"), dtype=torch.float32)
    assert sum(each.numel() for each in model.parameters()) == hub.PAIRS["demo"].num_parameters
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."
