"""A tiny target, and answers that it wrote itself."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dspark.config import GraftConfig, SamplingConfig, StopConfig
from dspark.drafters.kinds import build_head
from dspark.engine.request import Request
from dspark.engine.session import open_session
from dspark.events import Finished
from dspark.graft.data.answer_file import Answer
from dspark.graft.head.init_from_target import start_random
from dspark.graft.head.shape import draft_config
from dspark.graft.target.frozen_target import FrozenTarget, load_frozen
from dspark.graft.train.trainer import Trainer
from dspark.hub.catalog.pairs import PairFiles
from dspark.progress import follow

MASK = 95
SMALL = GraftConfig(
    steps=6,
    batch_size=3,
    anchors=5,
    length=40,
    learning_rate=3e-3,
    block_size=4,
    intermediate_size=32,
    taps=(0, 1),
    mask_token_id=MASK,
    markov_rank=8,
    seed=5,
    chunk_rows=7,
    tap_memory_gib=0.1,
    checkpoint_every=2,
    eval_prompts=3,
)


@pytest.fixture(scope="module", autouse=True)
def judged_by_short_texts() -> Iterator[None]:
    """A random target never ends one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dspark.graft.judge.judge.EVALUATION_TOKENS", 24)
        yield


@pytest.fixture(scope="module", autouse=True)
def any_processor() -> Iterator[None]:
    """ "auto" is float32, as on most."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dspark.graft.train.precision.has_bfloat16_units", lambda device: False)
        yield


@pytest.fixture(scope="session")
def small_config() -> GraftConfig:
    return SMALL


@pytest.fixture(scope="session")
def answers(tiny_llama_dir: Path) -> list[Answer]:
    """24 continuations of random prompts."""
    session = follow(open_session(PairFiles("tiny", tiny_llama_dir, None)))
    generator = torch.Generator().manual_seed(1)
    requests = [
        Request(
            tuple(torch.randint(90, (int(size),), generator=generator).tolist()),
            SamplingConfig(temperature=0.3),
            StopConfig(max_tokens=24),
        )
        for size in torch.randint(3, 9, (24,), generator=generator)
    ]
    numbers = count()  # that each draws from
    session.engine._entropy = SimpleNamespace(getrandbits=lambda bits: next(numbers))
    done = [e for e in session.engine.run(requests) if isinstance(e, Finished)]
    return [
        Answer(requests[e.request_id].prompt_ids, e.token_ids, str(e.request_id), "")
        for e in sorted(done, key=lambda e: e.request_id)
    ]


@pytest.fixture(scope="session")
def target(tiny_llama_dir: Path) -> FrozenTarget:
    frozen = load_frozen(
        tiny_llama_dir, device=torch.device("cpu"), dtype=torch.float32, memory_bytes=2**20
    )
    frozen.tap((0, 1))
    return frozen


MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(target: FrozenTarget, answers: list[Answer]) -> MakeTrainer:
    def make(config: GraftConfig = SMALL, num_answers: int = 21) -> Trainer:
        head = build_head(draft_config(target.config, config, MASK))
        start_random(head, torch.Generator().manual_seed(config.seed))
        return Trainer(head, target, answers[:num_answers], config)

    return make
