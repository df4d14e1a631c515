"""The real demo pair, from the package index to an answer."""

import pytest
import torch

from dspark import hub


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
