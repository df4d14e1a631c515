"""Domino in int8 copies on the CPU's kernels, beside a target in stored codes."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from dspark import hub
from dspark.checkpoints.deepspec import write_head
from dspark.checkpoints.domino_config import DominoConfig
from dspark.config import EngineConfig, RuntimeConfig, ScheduleConfig
from dspark.drafters.domino import DominoDrafter
from dspark.drafters.stored_domino import StoredDominoDrafter
from dspark.engine.session import Session, load_drafter, open_session
from dspark.events import Finished
from dspark.progress import follow
from dspark_kernels.cpu import runtime
from dspark_kernels.cpu.processor import variants
from tests.drafters.test_stored import CLOSE, check_drafts_of_numbers, chooser, filled
from tests.engine.pairs import decode, request
from tests.targets.test_gguf import write

pytestmark = pytest.mark.skipif(not variants(), reason="no kernels for this processor")


def write_random_head(folder: Path, target: Path) -> Path:
    raw = json.loads((target / "config.json").read_text())
    config = DominoConfig(
        **{name: raw[name] for name in ("vocab_size", "hidden_size", "intermediate_size")},
        **{"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32},
        **{"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "block_size": 4, "mask_token_id": 3},
        **{"target_layer_ids": (-1, 0), "num_target_layers": raw["num_hidden_layers"]},
        **{"projector_width": 8, "gru_width": 32},
    )
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.1
        for name, shape in config.expected_tensors().items()
        if name not in ("embed_tokens.weight", "lm_head.weight")
    }
    folder.mkdir()
    write_head(folder, config, tensors, {})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("domino")


@pytest.fixture(scope="module")
def session(folder, tmp_path_factory) -> Iterator[Session]:
    kept = tmp_path_factory.getbasetemp() / "kernels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "_cache_folder", kept)
        patch.setenv("DSPARK_HOME", str(folder / "home"))
        yield opened(folder)


def opened(folder: Path) -> Session:
    write(folder / "model.gguf", "llama", Kind.Q8_0)
    target = hub.resolve_target(str(folder / "model.gguf"))
    files = hub.PairFiles("toy", target, write_random_head(folder / "head", target))
    config = EngineConfig(schedule=ScheduleConfig("full"))
    return follow(open_session(files, RuntimeConfig("cpu"), config))


@torch.inference_mode()
def test_a_block_is_that_of_the_head_in_numbers_but_for_rounding(session, folder) -> None:
    own = session.engine.drafter
    plain = load_drafter(folder / "head", session.engine.target, "bf16")
    assert type(own) is StoredDominoDrafter and type(plain) is DominoDrafter
    anchors, slots = torch.tensor([7, 9]), [40, 100]
    found, wanted = (
        each._backbone(filled(each, slots, own.config.tap_width), anchors) for each in (own, plain)
    )
    assert (found - wanted).norm() < CLOSE * wanted.norm()
    embedding, state = own._embedding[anchors], torch.randn(2, 32)
    states = [each._head.prefix_gru(embedding, state) for each in (own, plain)]
    assert (states[0] - states[1]).norm() < CLOSE * states[1].norm()
    check_drafts_of_numbers(session, plain)


@torch.inference_mode()
def test_a_draft_is_the_same_in_any_company(session) -> None:
    drafter = session.engine.drafter
    slots = filled(drafter, [3, 40, 16, *range(20, 34)], drafter.config.tap_width)
    anchors = torch.arange(len(slots)) + 2
    together = drafter.propose(slots, anchors, chooser(session, len(slots)))
    for row in (0, 2, 16):
        alone = drafter.propose([slots[row]], anchors[row : row + 1], chooser(session, 1))
        assert torch.equal(alone.token_ids[0], together.token_ids[row])


@pytest.mark.parametrize("how", [{}, {"temperature": 0.8, "seed": 11}])
def test_drafts_write_what_plain_decoding_writes(session, how) -> None:
    prompts = [[2 + (7 * i + j) % 250 for j in range(5 + 11 * i)] for i in range(3)]
    asks = [request(p, 16, **how) for p in prompts]
    plain = [decode(session.engine, [replace(ask, plain=True)])[0] for ask in asks]
    ended = [e for e in session.engine.run(asks) if isinstance(e, Finished)]
    assert sorted(e.token_ids for e in ended) == sorted(map(tuple, plain))
