"""gpt-oss and Qwen3-MoE from their published layouts on the CPU's kernels: transformers in float32
within 1e-5, the torch reference to the bit where rows are rounded."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from transformers import AutoModelForCausalLM

from dspark.checkpoints.model_folder import ModelFolder
from dspark.checkpoints.moe_config import MoeConfig
from dspark.checkpoints.moe_target import read_moe
from dspark.config import SamplingConfig, StopConfig
from dspark.drafters.lookup import LookupDrafter
from dspark.engine.loop import Engine
from dspark.engine.request import Request
from dspark.engine.schedule.expert_prices import ExpertPrices
from dspark.engine.schedule.policies import FullSchedule, SpsSchedule
from dspark.errors import CheckpointError
from dspark.events import Finished, Round
from dspark.models.expert_store import ExpertStore, Policy
from dspark.targets.expert_use import RoutesExperts
from dspark.targets.load import load_target
from dspark.targets.moe import MoeTarget, load_moe
from dspark_kernels.cpu.processor import variants
from dspark_kernels.cpu.runtime import Runtime, using
from tests.engine.pairs import TABLE, decode
from tests.engine.rollback import check_rollback
from tests.models.test_expert_store import settle
from tests.moe_toy import YARN, write_oss, write_qwen

KINDS = ("oss", "oss-yarn", "qwen", "qwen-fp8", "qwen-of-all")
IDS = torch.randint(0, 80, (290,), generator=torch.Generator().manual_seed(5))
PLACE = {"device": torch.device("cpu"), "dtype": torch.float32}
TAPS = (0, 2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    write_oss(paths["oss"])
    write_oss(paths["oss-yarn"], rope_parameters=YARN, num_local_experts=17)
    write_qwen(paths["qwen"])
    write_qwen(paths["qwen-fp8"], is_fp8=True)
    write_qwen(paths["qwen-of-all"], norm_topk_prob=False, attention_bias=True)
    return paths


@pytest.fixture(scope="module")
def runtimes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Runtime]]:
    """Every variant that this processor runs, the first on two threads as well."""
    if not variants():
        pytest.skip("no kernels for this processor")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whoever compiles first compiles for all
        folder = folder.parent
    folder /= "kernels"
    with ExitStack() as closing:
        found = [Runtime(variant, 1, folder) for variant in variants().values()]
        found.append(Runtime(found[0].variant, 2, folder))
        for each in found:
            closing.callback(each.close)
        yield found


@pytest.fixture(autouse=True)
def on_the_first(runtimes: list[Runtime]) -> Iterator[None]:
    with using(runtimes[0]):
        yield


def loaded(folder: Path, *, rounds: bool = False) -> MoeTarget:
    target = load_target(folder / "packed", tap_layers=TAPS, as_stored=rounds, **PLACE)
    assert isinstance(target, MoeTarget)
    return target


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_is_transformers(folders: dict[str, Path], kind: str) -> None:
    """In passes of several sizes, past windows of 10 and the first page."""
    whole = AutoModelForCausalLM.from_pretrained(folders[kind] / "float", dtype=torch.float32)
    wanted = whole(input_ids=IDS[None], output_hidden_states=True)
    target, end = loaded(folders[kind]), 0
    slot = target.open()
    for size in (20, 1, 63, 7, 159, 40):
        found = target.verify([slot], [IDS[end : end + size]])
        target.commit([slot], [size])
        for mine, of_all in (
            (found.logits, wanted.logits[0]),
            (found.taps[:, : found.taps.shape[1] // 2], wanted.hidden_states[1][0]),
        ):
            limit = 1e-5 * float(of_all.abs().max())
            torch.testing.assert_close(mine, of_all[end : end + size], rtol=0, atol=limit)
        end += size
    target.close(slot)


def passes(target: MoeTarget) -> list[torch.Tensor]:
    """Logits and taps of a prompt and of a block of each of two requests."""
    slots = [target.open(), target.open()]
    found = [target.prefill(slot, IDS[:end]) for slot, end in zip(slots, (13, 3), strict=True)]
    found.append(target.verify(slots, [IDS[13:18], IDS[3:5]]))
    for slot in slots:
        target.close(slot)
    return [each for passed in found for each in (passed.logits, passed.taps)]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("kind", "rounds"), [("oss-yarn", False), ("oss-yarn", True), ("qwen-fp8", False)]
)
def test_every_processor_has_the_bits_of_torch(
    runtimes: list[Runtime], folders: dict[str, Path], kind: str, rounds: bool
) -> None:
    target = loaded(folders[kind], rounds=rounds)
    assert target.kinds == (("fp4",) if rounds else ())
    with patch("dspark.targets.moe.current", lambda: None):
        expected = passes(target)
    for runtime in runtimes if "oss" in kind else runtimes[:1]:
        with using(runtime):
            for found, right in zip(passes(target), expected, strict=True):
                assert torch.equal(found, right), runtime.variant.name


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["oss", "qwen-fp8"])
def test_a_row_has_the_same_bits_in_any_company(folders: dict[str, Path], kind: str) -> None:
    target = loaded(folders[kind], rounds=True)
    lengths = (19, 5, 40)
    slots = [target.open() for _ in lengths]
    for slot, length in zip(slots, lengths, strict=True):
        target.prefill(slot, IDS[:length])
    together = target.verify(slots, [IDS[length : length + 6] for length in lengths]).logits
    for index, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        one_by_one = []
        for row in range(6):
            one_by_one.append(target.verify([slot], [IDS[length + row : length + row + 1]]).logits)
            target.commit([slot], [1])
        assert torch.equal(torch.cat(one_by_one), together[6 * index : 6 * index + 6])


@pytest.mark.parametrize("kind", ["oss", "qwen"])
def test_it_rolls_back(folders: dict[str, Path], kind: str) -> None:
    check_rollback(loaded(folders[kind]))


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["oss", "qwen", "qwen-fp8"])
@pytest.mark.parametrize("policy", ["most used", "last used"])
def test_where_experts_are_never_changes_the_text(
    folders: dict[str, Path], kind: str, policy: Policy
) -> None:
    folder = ModelFolder(folders[kind] / "packed")
    config = MoeConfig.from_json(folder.config)
    weights = read_moe(folder, config)
    expected = passes(MoeTarget(config, weights, tap_layers=TAPS, rounds=True))
    store = ExpertStore([block.experts for block in weights.blocks], 4, policy)
    target = MoeTarget(config, weights, tap_layers=TAPS, rounds=True, store=store)
    for _ in range(4):
        for found, right in zip(passes(target), expected, strict=True):
            assert torch.equal(found, right)
        settle(store)
    assert store.admitted and store.hits and store.misses and not store.failures
    use = target.expert_use()
    assert use is not None and 0 < use.far <= use.reads and len(use.new) == 2
    store.close()


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda t: t.pop("model.layers.1.self_attn.sinks"), "sinks"),
        (lambda t: t["model.layers.0.mlp.experts.down_proj_scales"].fill_(255), "no number"),
        (lambda t: t.update(extra=torch.zeros(2)), "unexpected"),
    ],
    ids=["a tensor is missing", "a scale is no number", "a tensor is unexpected"],
)
def test_damaged_files_are_refused(
    folders: dict[str, Path], tmp_path: Path, break_it, says
) -> None:
    from safetensors.torch import load_file, save_file

    source = folders["oss"] / "packed"
    tensors = load_file(source / "model.safetensors")
    break_it(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    with pytest.raises(CheckpointError, match=says):
        load_moe(ModelFolder(tmp_path), tap_layers=())


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["oss", "qwen-fp8"])
def test_drafts_priced_by_their_experts_never_change_the_text(
    folders: dict[str, Path], kind: str
) -> None:
    """Lookup's, kept and refused; the prices are of experts that finished rounds told."""
    target = loaded(folders[kind], rounds=True)
    assert isinstance(target, RoutesExperts)
    stop = StopConfig(max_tokens=40, ignore_stop_tokens=True)
    prompts = (IDS[at : at + 9].tolist() for at in (0, 9, 18))
    asked = [Request(tuple(each), SamplingConfig(), stop) for each in prompts]
    alone = [decode(Engine(target, None, FullSchedule()), [each])[0] for each in asked]
    prices = ExpertPrices(target.expert_shape, LookupDrafter().block_size, 1e-4)
    table = replace(TABLE, expert_reads=(6.0, 15.0, 18.0))
    for scheduler in (FullSchedule(), SpsSchedule(table, prices)):
        engine, accepted, done = Engine(target, LookupDrafter(), scheduler), 0, {}
        for event in engine.run(asked):
            accepted += event.accepted if isinstance(event, Round) else 0
            if isinstance(event, Finished):
                done[event.request_id] = event.token_ids
        assert [done[number] for number in sorted(done)] == alone and accepted > 0
