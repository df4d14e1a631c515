"""DeepSeek-V4's own forward over rings and pages against transformers in float32, on a toy in the
published layout. Hash-routed layers, every kind of compression, 300 positions. About 5 s."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark.checkpoints.deepseek_v4_target_config import is_published_layout
from dspark.errors import CheckpointError
from dspark.kvcache.row_pool import KVSlot
from dspark.targets.deepseek_v4_native import DeepseekV4Target, load_deepseek_v4
from dspark.targets.hf import HfTarget, load_hf
from tests.deepseek_v4_toy import CONFIG, write

CPU = torch.device("cpu")
LENGTH, TAPS = 300, (1, 2, 3)
IDS = torch.randint(0, 96, (LENGTH,), generator=torch.Generator().manual_seed(5))
YARN = {"factor": 16, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v4")
    write(folder, rope_scaling={"type": "yarn"} | YARN)
    return folder


@pytest.fixture(scope="module")
def target(folder: Path) -> DeepseekV4Target:
    return load_deepseek_v4(folder, tap_layers=TAPS)


@pytest.fixture(scope="module")
def expected(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [300, V] and taps of the whole text, by transformers."""
    oracle: HfTarget = load_hf(
        folder, tap_layers=TAPS, stop_token_ids=frozenset(), device=CPU, dtype=torch.float32
    )
    with torch.inference_mode():
        whole = oracle.verify([oracle.open()], [IDS])
    return whole.logits, whole.taps


def poisoned(target: DeepseekV4Target) -> KVSlot:
    """A fresh request in whose memory whatever is not written is NaN."""
    slot = target.open()
    target.caches.rings(slot).memory.fill_(torch.nan)
    if not target.pool.num_held([slot]) and target.pool.num_free_pages == target.pool.num_pages:
        for half in target.pool.layer(0):
            half.fill_(torch.nan)
    return slot


def check_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@torch.inference_mode()
def test_the_forward_is_transformers(
    target: DeepseekV4Target, expected: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """In passes of 64 rows, that a verify pass may have."""
    slot = poisoned(target)
    for start in range(0, LENGTH, 64):
        verified = target.verify([slot], [IDS[start : start + 64]])
        target.commit([slot], [len(verified.logits)])
        check_close(verified.logits, expected[0][start : start + 64])
        check_close(verified.taps, expected[1][start : start + 64])
    target.close(slot)


@torch.inference_mode()
@pytest.mark.parametrize("sizes", [(300,), (7, 1, 92, 150, 50)])
def test_a_prompt_in_chunks_is_transformers(
    target: DeepseekV4Target, expected: tuple[torch.Tensor, torch.Tensor], sizes: tuple[int, ...]
) -> None:
    slot, end = poisoned(target), 0
    for size in sizes:
        passed = target.prefill(slot, IDS[end : end + size])
        end += size
        check_close(passed.logits, expected[0][end - 1 : end])
        check_close(passed.taps, expected[1][end - size : end])
    target.close(slot)


@torch.inference_mode()
def test_after_any_rollback_it_goes_on_as_if_nothing_had_been_refused(
    target: DeepseekV4Target, expected: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Around the edges of windows of 4 and 8, pages of 256, and with 64 refused rows."""
    slot, end = poisoned(target), 243
    target.prefill(slot, IDS[:end])
    for kept, refused in ((1, 7), (4, 1), (2, 0), (1, 63), (5, 3), (3, 8), (1, 64 - 1), (8, 5)):
        wrong = IDS[:refused]
        verified = target.verify([slot], [torch.cat([IDS[end : end + kept], wrong])])
        target.commit([slot], [kept])
        check_close(verified.logits[:kept], expected[0][end : end + kept])
        end += kept
    assert end > 256 + 8
    target.close(slot)


@pytest.fixture(scope="module")
def rounding(folder: Path) -> DeepseekV4Target:
    """With experts on rows of 8 bits."""
    return load_deepseek_v4(folder, tap_layers=TAPS, rounds=True)


@torch.inference_mode()
@pytest.mark.parametrize("which", ["target", "rounding"])
def test_a_row_has_the_same_bits_in_any_company(which: str, request: pytest.FixtureRequest) -> None:
    target = request.getfixturevalue(which)
    lengths = (19, 5, 40)
    slots = [target.open() for _ in lengths]
    for slot, length in zip(slots, lengths, strict=True):
        target.prefill(slot, IDS[:length])
    blocks = [IDS[length : length + 6] for length in lengths]
    together = target.verify(slots, blocks)
    for index, (slot, block) in enumerate(zip(slots, blocks, strict=True)):
        mine = together.logits[6 * index : 6 * index + 6]
        alone = target.verify([slot], [block])
        assert torch.equal(alone.logits, mine)
        assert torch.equal(alone.taps, together.taps[6 * index : 6 * index + 6])
        for row in range(3):  # one by one
            step = target.verify([slot], [block[row : row + 1]])
            assert torch.equal(step.logits[0], mine[row])
            target.commit([slot], [1])
        target.close(slot)


@torch.inference_mode()
def test_a_fork_and_its_origin_go_on_separately(target: DeepseekV4Target) -> None:
    before = target.open()
    target.prefill(before, IDS[:70])
    fork = target.fork(before, 67)
    assert fork is not None and target.length(fork) == 67
    assert target.held_bytes([before, fork]) < 2 * target.held_bytes([before])
    other = target.verify([fork], [IDS[:9]])
    target.commit([fork], [9])
    mine = target.verify([before], [IDS[70:75]])
    for prompt, block, found in ((IDS[:67], IDS[:9], other), (IDS[:70], IDS[70:75], mine)):
        fresh = target.open()
        target.prefill(fresh, prompt)
        assert torch.equal(target.verify([fresh], [block]).logits, found.logits)
        target.close(fresh)
    for slot in (before, fork):
        target.close(slot)
    target.pool.check()
    assert target.pool.num_free_pages == target.pool.num_pages


@torch.inference_mode()
def test_a_text_is_cut_as_far_as_its_window_is_still_there(target: DeepseekV4Target) -> None:
    slot = target.open()
    target.prefill(slot, IDS[:200])
    assert target.fork(slot, 20) is None and not target.truncate(slot, 20)
    assert target.length(slot) == 200
    assert target.truncate(slot, 150)
    fresh = target.open()
    target.prefill(fresh, IDS[:150])
    cut, whole = (target.verify([each], [IDS[90:99]]).logits for each in (slot, fresh))
    assert torch.equal(cut, whole)
    for each in (slot, fresh):
        target.close(each)


def test_weights_stay_where_the_files_have_them(target: DeepseekV4Target, folder: Path) -> None:
    """FP8, FP4 and bfloat16: every byte of a matrix is that of a mapped file."""
    weights = target._weights
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    matrices = [*weights.matrices.values()]
    matrices += [
        matrix
        for block in weights.blocks
        for expert in block.experts
        for matrix in (expert.gate, expert.up, expert.down)
    ]
    assert {m.kind for m in matrices} == {"fp8", "fp4", "bfloat16", "float32"}
    assert sum(matrix.num_bytes for matrix in matrices) < stored
    for matrix in matrices:
        if matrix.kind != "float32":
            assert not matrix.codes.untyped_storage().resizable()


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the first shard, which holds the first layers."""
    path = folder / "model-00001-of-00003.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def set_byte(name: str, byte: int) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(torch.uint8)[0, 0] = byte

    return change


def as_float(tensors: dict[str, torch.Tensor]) -> None:
    tensors["layers.0.attn.wq_a.scale"] = tensors["layers.0.attn.wq_a.scale"].float()


def lose(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["layers.0.ffn.experts.3.w2.weight"]


def beyond(tensors: dict[str, torch.Tensor]) -> None:
    tensors["layers.0.ffn.gate.tid2eid"][5, 0] = 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (as_float, r"layers.0.attn.wq_a.scale is F32 \[2, 2\], not F8_E8M0"),
        (lose, r"places layers.0.ffn.experts.3.w2.weight in model-00001.* which lacks it"),
        (set_byte("layers.0.ffn.experts.1.w1.scale", 255), "experts.1.w1.scale .* no number"),
        (set_byte("layers.0.ffn.experts.1.w1.scale", 0), "experts.1.w1.scale .* no number"),
        (set_byte("layers.0.attn.wo_b.scale", 255), "attn.wo_b.scale .* no number"),
        (beyond, "experts that do not exist"),
    ],
    ids=["scale type", "index lies", "scale 255", "scale 0", "block scale", "hash table"],
)
def test_files_that_are_wrong_are_refused_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], said: str
) -> None:
    write(tmp_path, num_hidden_layers=2)
    spoil(tmp_path, change)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_deepseek_v4(tmp_path, tap_layers=())
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, num_hidden_layers=2)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00003\.safetensors"):
        load_deepseek_v4(tmp_path, tap_layers=())


@pytest.mark.parametrize(
    "changes",
    [
        {"compress_ratios": [0, 4]},
        {"compress_ratios": [0, 3, 128, 0]},
        {"num_hidden_layers": 10**9},
        {"q_lora_rank": "wide"},
        {"scoring_func": "softmax"},
        {"hc_eps": 0.0},
        {"compress_rate_hca": 7},
        {"rope_scaling": {"type": "unheard of"}},
        {"quantization_config": {"quant_method": "fp8"}},
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_refused(
    folder: Path, changes: dict, tmp_path: Path
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
    with pytest.raises(CheckpointError):
        load_deepseek_v4(tmp_path, tap_layers=())


def test_other_layouts_of_the_family_are_left_to_transformers() -> None:
    assert is_published_layout(CONFIG)
    assert not is_published_layout({"model_type": "deepseek_v4", "layer_types": []})
    assert not is_published_layout(CONFIG | {"expert_dtype": "fp8"})
    assert not is_published_layout(CONFIG | {"quantization_config": None})


@torch.inference_mode()
@pytest.mark.parametrize("which", ["target", "rounding"])
def test_the_experts_of_a_pass_are_those_of_transformers(
    which: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    """A layer's first choices go by the token, later ones by the router: counted by a hook on the
    reference's gates."""
    target: DeepseekV4Target = request.getfixturevalue(which)
    oracle = load_hf(
        folder, tap_layers=TAPS, stop_token_ids=frozenset(), device=CPU, dtype=torch.float32
    )
    chosen: list[torch.Tensor] = []
    for module in oracle.model.modules():
        if type(module).__name__.endswith("Router"):
            module.register_forward_hook(lambda *call: chosen.append(call[2][-1]))
    oracle.verify([oracle.open()], [IDS[:12]])
    assert len(chosen) == CONFIG["num_hidden_layers"]
    slot = target.open()
    target.prefill(slot, IDS[:7])
    target.verify([slot], [IDS[7:12]])
    seen, new = set(), []
    for row in range(7, 12):
        mine = {(index, int(e)) for index, each in enumerate(chosen) for e in each[row]}
        new.append(len(mine - seen))
        seen |= mine
    use = target.expert_use()
    assert use is not None and use.new == (tuple(new),) and use.reads == len(seen)
    assert target.expert_shape.num_bytes == 3 * 64 * 32 * 17 // 32
    target.close(slot)
