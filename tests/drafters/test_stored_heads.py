"""Heads of other kinds in int8 copies on the CPU's kernels, beside a target in stored codes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from dspark import hub
from dspark.checkpoints.dflash2_config import DFlash2Config
from dspark.checkpoints.domino_config import DominoConfig
from dspark.checkpoints.eagle3_config import Eagle3Config
from dspark.checkpoints.head_config import HeadConfig
from dspark.config import EngineConfig, RuntimeConfig, ScheduleConfig
from dspark.drafters.dflash2 import DFlash2Drafter
from dspark.drafters.domino import DominoDrafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.drafters.stored_domino import StoredDominoDrafter
from dspark.drafters.stored_products import StoredDFlash2Drafter, StoredEagle3Drafter
from dspark.engine.session import Session, load_drafter, open_session
from dspark.events import Finished
from dspark.progress import follow
from dspark_kernels.cpu import runtime
from dspark_kernels.cpu.processor import variants
from tests.drafters.test_stored import (
    CLOSE,
    check_drafts_of_numbers,
    chooser,
    filled,
    head_sizes,
    write_random,
)
from tests.engine.pairs import decode, request
from tests.targets.test_gguf import write

pytestmark = pytest.mark.skipif(not variants(), reason="no kernels for this processor")
CLASSES = {
    "domino": (StoredDominoDrafter, DominoDrafter),
    "dflash2": (StoredDFlash2Drafter, DFlash2Drafter),
    "eagle3": (StoredEagle3Drafter, Eagle3Drafter),
    "mtp": (StoredEagle3Drafter, Eagle3Drafter),
}


def head_config(target: Path, kind: str) -> HeadConfig:
    sizes, block = head_sizes(target), {"num_layers": 2, "block_size": 4, "mask_token_id": 3}
    if kind == "domino":
        return DominoConfig(**sizes, **block, projector_width=8, gru_width=32)
    if kind == "dflash2":
        selector = {"conv_group_size": 16, "selector_rank": 32, "selector_top_k": 6}
        return DFlash2Config(**sizes, **block, **selector)
    return Eagle3Config(**sizes, ttt_length=4 if kind == "eagle3" else 1)


@pytest.fixture(scope="module", params=CLASSES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp(kind)


@pytest.fixture(scope="module")
def session(kind, folder, tmp_path_factory) -> Iterator[Session]:
    kept = tmp_path_factory.getbasetemp() / "kernels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "_cache_folder", kept)
        patch.setenv("DSPARK_HOME", str(folder / "home"))
        yield opened(folder, kind)


def opened(folder: Path, kind: str) -> Session:
    write(folder / "model.gguf", "llama", Kind.Q8_0)
    target = hub.resolve_target(str(folder / "model.gguf"))
    write_random(folder / "head", head_config(target, kind))
    files = hub.PairFiles("toy", target, folder / "head")
    config = EngineConfig(schedule=ScheduleConfig("full"))
    return follow(open_session(files, RuntimeConfig("cpu"), config))


def first_rows(drafter: DSparkDrafter | Eagle3Drafter, anchors: torch.Tensor) -> torch.Tensor:
    """Hidden states of what is drafted first, behind the same contexts for every drafter."""
    slots = filled(drafter, [40, 100], drafter.config.tap_width)
    if isinstance(drafter, DSparkDrafter):
        return drafter._backbone(slots, anchors)
    return drafter._step(slots, anchors, torch.stack([slot.features[-1] for slot in slots]))


@torch.inference_mode()
def test_a_draft_is_that_of_the_head_in_numbers_but_for_rounding(session, folder, kind) -> None:
    own = session.engine.drafter
    plain = load_drafter(folder / "head", session.engine.target, "bf16")
    assert (type(own), type(plain)) == CLASSES[kind]
    found, wanted = (first_rows(each, torch.tensor([7, 9])) for each in (own, plain))
    assert (found - wanted).norm() < CLOSE * wanted.norm()
    check_drafts_of_numbers(session, plain)
    if kind == "dflash2":
        selectors = [each._head.candidate_selector for each in (own, plain)]
        projections = [selector.hidden_projection(wanted) for selector in selectors]
        assert (projections[0] - projections[1]).norm() < CLOSE * projections[1].norm()
    if kind == "domino":
        embedding, state = own._embedding[torch.tensor([7, 9])], torch.randn(2, 32)
        states = [each._head.prefix_gru(embedding, state) for each in (own, plain)]
        assert (states[0] - states[1]).norm() < CLOSE * states[1].norm()


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
