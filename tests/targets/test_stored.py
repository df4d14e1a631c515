"""A GGUF on the CPU's kernels: drafts, schedules and company change no bit of what it writes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file
from transformers import LlamaConfig

from dspark import hub
from dspark.config import EngineConfig, RuntimeConfig, ScheduleConfig
from dspark.engine.session import open_session
from dspark.errors import CheckpointError
from dspark.events import Finished
from dspark.progress import follow
from dspark.targets.dense import DenseTarget
from dspark.targets.load import load_target
from dspark.targets.stored import StoredTarget, build_kernels
from dspark_kernels.cpu import runtime
from dspark_kernels.cpu.processor import variants
from dspark_kernels.paged_cache import PAGE
from tests.engine.pairs import decode, request, scheduled
from tests.engine.rollback import check_rollback
from tests.targets.test_gguf import MODELS, SIZES, TOKENS, write

PLACE = {"device": torch.device("cpu"), "dtype": torch.float32}
ROUNDING = 2e-4  # of the logits' size: what 16-bit activations may add up to

needs_kernels = pytest.mark.skipif(not variants(), reason="no kernels for this processor")


@pytest.fixture(autouse=True)
def kept_kernels(tmp_path_factory, monkeypatch) -> None:
    """Compiled once for all tests."""
    monkeypatch.setattr(runtime, "_cache_folder", tmp_path_factory.getbasetemp() / "kernels")


def converted(folder: Path, name: str, kind: Kind) -> Path:
    write(folder / "model.gguf", name, kind)
    return hub.resolve_target(str(folder / "model.gguf"))


def loaded(folder: Path, taps: tuple[int, ...] = ()) -> StoredTarget:
    target = load_target(folder, tap_layers=taps, as_stored=True, **PLACE)
    assert isinstance(target, StoredTarget)
    return target


@needs_kernels
@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama", Kind.Q4_K), ("llama 3", Kind.Q8_0), ("qwen2", Kind.Q8_0), ("qwen3", Kind.Q6_K)],
)
def test_it_is_the_model_of_the_file_but_for_rounded_rows(tmp_path, name, kind) -> None:
    folder = converted(tmp_path, name, kind)
    stored, dense = loaded(folder, (-1, 0)), load_target(folder, tap_layers=(-1, 0), **PLACE)
    assert isinstance(dense, DenseTarget)
    assert stored.spec.stop_token_ids == dense.spec.stop_token_ids
    ids = torch.randint(0, len(TOKENS), (90,))
    with torch.inference_mode():
        ours, theirs = (t.verify([t.open()], [ids]) for t in (stored, dense))
    for found, wanted in ((ours.logits, theirs.logits), (ours.taps, theirs.taps)):
        assert (found - wanted).norm() < ROUNDING * wanted.norm()
    width = stored.spec.hidden_size
    assert torch.equal(ours.taps[:, :width], theirs.taps[:, :width])  # embeddings are as stored


@needs_kernels
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_row_is_the_same_in_any_block_and_company(tmp_path, name) -> None:
    target = loaded(converted(tmp_path, name, Kind.Q8_0), (0,))
    ids = torch.randint(0, len(TOKENS), (300,), generator=torch.Generator().manual_seed(0))
    slots = [target.open() for _ in range(3)]
    for slot, length in zip(slots, (250, 250, 31), strict=True):
        target.prefill(slot, ids[:length])
    alone = []
    for i in range(250, 290):
        alone.append(target.verify(slots[:1], [ids[i : i + 1]]))
        target.commit(slots[:1], [1])
    logits, taps = (torch.cat([getattr(p, which) for p in alone]) for which in ("logits", "taps"))
    for size in (2, 5, 8, 17, 40):
        target.truncate(slots[0], 250)
        together = target.verify(slots, [ids[250 : 250 + size], ids[250:290], ids[:13]])
        assert torch.equal(together.logits[: size + 40], torch.cat([logits[:size], logits])), size
        assert torch.equal(together.taps[: size + 40], torch.cat([taps[:size], taps])), size


@needs_kernels
def test_what_is_refused_leaves_nothing(tmp_path) -> None:
    check_rollback(loaded(converted(tmp_path, "llama", Kind.Q8_0), (0, 1)))


@pytest.fixture
def three_layers(monkeypatch) -> None:
    """A head taps all but the last."""
    sizes = SIZES | {"num_hidden_layers": 3}
    monkeypatch.setitem(MODELS, "llama", lambda: LlamaConfig(**sizes, tie_word_embeddings=True))


@needs_kernels
@pytest.mark.parametrize("drafts", ["head", "lookup"])
def test_drafts_schedules_and_company_write_what_plain_decoding_writes(
    tmp_path, make_tiny_head, three_layers, drafts
) -> None:
    folder = converted(tmp_path, "llama", Kind.Q8_0)
    is_lookup = drafts == "lookup"
    head = None if is_lookup else make_tiny_head(folder)
    files = hub.PairFiles("toy", folder, head, "lookup" if is_lookup else None)
    schedule = ScheduleConfig("full")
    session = follow(open_session(files, RuntimeConfig("cpu"), EngineConfig(schedule=schedule)))
    assert session.runtime.dtype == "q8_0"
    asked = [request([2 + (7 * i + j) % 250 for j in range(5 + 11 * i)], 24) for i in range(8)]
    alone = [decode(session.engine, [replace(each, plain=True)])[0] for each in asked]
    for engine in (session.engine,) if is_lookup else (session.engine, scheduled(session)):
        for count in (1, 3, 8):
            assert decode(engine, asked[:count]) == alone[:count]


@needs_kernels
def test_shared_pages_and_making_way_change_no_bit(tmp_path, make_tiny_head, three_layers) -> None:
    """Three texts that share nearly a page, in memory for two; then each goes on."""
    folder = converted(tmp_path, "llama", Kind.Q8_0)
    files = hub.PairFiles("toy", folder, make_tiny_head(folder))
    config = EngineConfig(schedule=ScheduleConfig("full"), prefix_cache_bytes=0)
    alone = follow(open_session(files, RuntimeConfig("cpu"), config)).engine
    tight = replace(config, cache_tokens=3 * PAGE, prefix_cache_bytes=2**30)
    engine = follow(open_session(files, RuntimeConfig("cpu"), tight)).engine
    begin = [2 + (7 * j) % 250 for j in range(PAGE - 24)]
    asked = [request([*begin, 9 + i], 24) for i in range(3)]
    finished = [event for event in engine.run(asked) if isinstance(event, Finished)]
    finished.sort(key=lambda event: event.request_id)
    for ask, found in zip(asked, finished, strict=True):
        assert found.token_ids == decode(alone, [replace(ask, plain=True)])[0]
    assert sum(found.stats.preemptions for found in finished) > 0
    assert finished[0].stats.cached_tokens == 0
    assert finished[1].stats.cached_tokens == len(begin)
    (*_, last) = finished
    longer = request([*asked[2].prompt_ids, *last.token_ids, 5, 5], 8)
    *_, found = engine.run([longer])
    assert found.token_ids == decode(alone, [replace(longer, plain=True)])[0]
    assert found.stats.cached_tokens == len(longer.prompt_ids) - 2
    engine.close()
    assert all(pool.num_free_pages == pool.num_pages for pool in engine._rounds.room.pools)


@needs_kernels
def test_kernels_are_built_once_and_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runtime, "_cache_folder", tmp_path / "kernels")
    folder = converted(tmp_path, "qwen3", Kind.Q6_K)
    stages = list(build_kernels(folder))
    assert [step.done for step in stages] == list(range(len(stages)))
    assert {step.total for step in stages} == {len(stages)} == {4}
    assert len([*(tmp_path / "kernels").iterdir()]) == 4 + 1  # and what runs the others
    assert not list(build_kernels(folder))
    runtime._made.clear()
    assert not list(build_kernels(folder))  # as in a new process


def test_numbers_are_asked_for_by_name(tmp_path) -> None:
    folder = converted(tmp_path, "qwen2", Kind.Q8_0)
    files = hub.PairFiles("toy", folder, None)
    session = follow(open_session(files, RuntimeConfig("cpu", "float32")))
    assert isinstance(session.engine.target, DenseTarget)
    assert session.runtime.dtype == "float32"


def test_without_kernels_it_is_unpacked(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DSPARK_KERNELS", "torch")
    folder = converted(tmp_path, "qwen2", Kind.Q8_0)
    assert isinstance(load_target(folder, tap_layers=(), as_stored=True, **PLACE), DenseTarget)


def test_a_file_with_other_formats_becomes_numbers(tmp_path) -> None:
    folder = converted(tmp_path, "qwen2", Kind.F16)
    assert isinstance(load_target(folder, tap_layers=(), as_stored=True, **PLACE), DenseTarget)


def a_weight(folder: Path, entry: Any, num_bytes: int) -> None:
    metadata = {"gguf_codes": json.dumps({"w": entry})}
    save_file(
        {"w": torch.zeros(num_bytes, dtype=torch.uint8)}, folder / "model.safetensors", metadata
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


@pytest.mark.parametrize(
    ("entry", "num_bytes"),
    [
        (["q8_0", 16, 64], 1087),  # too few for the shape
        (["q8_0", 16, 33], 1088),
        (["q9_9", 16, 64], 1088),
        (["q8_0", -16, 64], 1088),
        (["q8_0", 16], 1088),
        ("q8_0", 1088),
    ],
)
def test_codes_that_make_no_sense_are_refused_in_one_line(tmp_path, entry, num_bytes) -> None:
    from dspark.checkpoints.safetensors_dir import tensor_infos

    a_weight(tmp_path, entry, num_bytes)
    with pytest.raises(CheckpointError) as caught:
        tensor_infos(tmp_path)
    assert "\n" not in caught.value.message
