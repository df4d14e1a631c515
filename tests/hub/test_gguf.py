"""A converted GGUF holds the very numbers and tokens of the original."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dspark.checkpoints.gguf import convert_gguf
from dspark.checkpoints.safetensors_dir import iterate_tensors
from dspark.errors import CheckpointError
from dspark.events import FetchProgress
from dspark.targets.hf_model import read_hf_model


def convert(source: Path, folder: Path) -> list[FetchProgress]:
    folder.mkdir()
    return list(convert_gguf(source, folder))


def rotated_pairs(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Row by row: row 2i of a head in llama.cpp is row i here, row 2i+1 is row i + D/2."""
    head_dim = len(weight) // num_heads
    rows = np.empty_like(weight)
    for head in range(num_heads):
        for pair in range(head_dim // 2):
            for half in range(2):
                to, source = pair + half * head_dim // 2, 2 * pair + half
                rows[head * head_dim + to] = weight[head * head_dim + source]
    return rows


@pytest.mark.parametrize("is_tied", [True, False])
def test_every_tensor_is_the_dequantised_one(tmp_path, write_gguf, is_tied) -> None:
    written = write_gguf(tmp_path / "model.gguf", is_tied=is_tied)
    convert(tmp_path / "model.gguf", tmp_path / "out")
    converted = dict(iterate_tensors(tmp_path / "out"))
    assert ("lm_head.weight" in converted) is not is_tied
    assert len(converted) == len(written)

    def expect(ours: str, values: np.ndarray) -> None:
        assert torch.equal(converted[ours], torch.tensor(values)), ours

    expect("model.embed_tokens.weight", written["token_embd.weight"])
    expect("model.norm.weight", written["output_norm.weight"])
    for layer in range(2):
        block = f"model.layers.{layer}"
        expect(f"{block}.mlp.down_proj.weight", written[f"blk.{layer}.ffn_down.weight"])
        expect(f"{block}.self_attn.v_proj.weight", written[f"blk.{layer}.attn_v.weight"])
        query = rotated_pairs(written[f"blk.{layer}.attn_q.weight"], 4)
        expect(f"{block}.self_attn.q_proj.weight", query)
        key = rotated_pairs(written[f"blk.{layer}.attn_k.weight"], 2)
        expect(f"{block}.self_attn.k_proj.weight", key)


def test_transformers_reads_the_same_model_from_the_gguf_itself(tmp_path, write_gguf) -> None:
    write_gguf(tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    ours = read_hf_model(tmp_path / "out", device=torch.device("cpu"), dtype=torch.float32)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    for key in ("rope_parameters", "rms_norm_eps", "head_dim", "max_position_embeddings"):
        assert getattr(ours.config, key) == getattr(theirs.config, key), key
    # <|endoftext|> ends an answer too, as in llama.cpp
    assert ours.generation_config.eos_token_id == [0, 2]


def test_the_tokenizer_splits_digits_first_and_round_trips(tmp_path, write_gguf) -> None:
    write_gguf(tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("ab\n\n12") == ["ab", "ĊĊ", "1", "2"]
    assert tokenizer.encode("<|im_start|>ab") == [1, tokenizer.convert_tokens_to_ids("ab")]
    text = "héllo\n\n  12 漢<|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 128
    said = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert said == "<|im_start|>user\nab<|im_end|>"


def test_progress_ends_with_everything(tmp_path, write_gguf) -> None:
    write_gguf(tmp_path / "model.gguf")
    steps = convert(tmp_path / "model.gguf", tmp_path / "out")
    done = [step.done for step in steps]
    assert done == sorted(done)
    size = sum(v.nbytes for v in load_file(tmp_path / "out" / "model.safetensors").values())
    assert steps[-1].done == steps[-1].total == size
    assert all(step.done < size for step in steps[:-1])


def test_missing_and_unknown_tensors_are_named(tmp_path, write_gguf) -> None:
    write_gguf(tmp_path / "model.gguf", leave_out="blk.1.ffn_up.weight")
    with pytest.raises(CheckpointError, match=r"lacks blk\.1\.ffn_up\.weight"):
        convert(tmp_path / "model.gguf", tmp_path / "out")


def test_a_pretokenizer_that_is_not_known_is_refused(tmp_path, write_gguf) -> None:
    write_gguf(tmp_path / "model.gguf", pre="made-up")
    with pytest.raises(CheckpointError, match="made-up"):
        convert(tmp_path / "model.gguf", tmp_path / "out")


@pytest.mark.parametrize("keep", [0, 3, 100, 5_000, 40_000])
def test_a_truncated_file_is_told(tmp_path, write_gguf, keep) -> None:
    write_gguf(tmp_path / "whole.gguf")
    (tmp_path / "model.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.gguf"):
        convert(tmp_path / "model.gguf", tmp_path / "out")
