"""A scripted session in place of the engine, and the command line in this process."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dspark.config import EngineConfig, RuntimeConfig, SamplingConfig, StopConfig
from dspark.events import (
    DecodeStats,
    Event,
    Finished,
    LoadProgress,
    Piece,
    PrefillProgress,
    Round,
)
from dspark.hub.catalog.pairs import PairFiles
from dspark_cli.main import run


class FakeCodec:
    has_chat_template = True
    has_thinking_switch = False


def scripted_answer(prompt_tokens: int, is_plain: bool = False) -> list[Event]:
    """Tokens 10 to 13: "Hello" from the prompt, then one round that ends with a stop token."""
    draft = () if is_plain else (11, 12, 99)
    pieces = (
        Piece(11, " wor", not is_plain, None if is_plain else 0.9),
        Piece(12, "ld", not is_plain, None if is_plain else 0.8),
        Piece(13, "", False),
    )
    only_round = Round(
        request_id=0,
        index=0,
        anchor=10,
        draft=draft,
        confidence=None if is_plain else (0.9, 0.8, 0.25),
        verified=len(draft),
        accepted=0 if is_plain else 2,
        next=13,
        pieces=pieces,
        rejected=() if is_plain else (Piece(99, "?", True, 0.25),),
        context_tokens=prompt_tokens + 4,
        draft_seconds=0.01,
        verify_seconds=0.02,
        seconds=0.04,
    )
    stats = DecodeStats(
        prompt_tokens=prompt_tokens,
        new_tokens=4,
        rounds=1,
        drafted=len(draft),
        verified=len(draft),
        accepted=only_round.accepted,
        prefill_seconds=0.1,
        decode_seconds=0.2 if is_plain else 0.1,
    )
    return [
        PrefillProgress(0, prompt_tokens, prompt_tokens, (Piece(10, "Hello", False),)),
        only_round,
        Finished(0, "stop_token", (10, 11, 12, 13), "Hello world!", stats, tail="!"),
    ]


@dataclass
class FakeSession:
    """Answers every prompt with the script and remembers what it was asked."""

    name: str = "demo"
    tokenizer: FakeCodec | None = field(default_factory=FakeCodec)
    has_drafter: bool = True
    context_limit: int = 512
    sampling_defaults: SamplingConfig = SamplingConfig()
    failure: BaseException | None = None
    asked: list[tuple[list[int], SamplingConfig, StopConfig, bool]] = field(default_factory=list)
    opened: list[tuple[PairFiles, RuntimeConfig, EngineConfig]] = field(default_factory=list)
    is_closed: bool = False
    effort: str | None = None
    engine: Any = field(default_factory=lambda: SimpleNamespace(drafter=None))
    runtime: Any = field(
        default_factory=lambda: SimpleNamespace(device="cpu", dtype="float32", reason="no GPU")
    )

    def encode_prompt(
        self, prompt: str, *, is_raw: bool = False, effort: str | None = None
    ) -> list[int]:
        self.effort = effort
        if is_raw or self.tokenizer is None or not self.tokenizer.has_chat_template:
            return self.encode(prompt)
        return self.encode_chat([{"role": "user", "content": prompt}])

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return [1, *self.encode(messages[0]["content"]), 2]

    def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingConfig = SamplingConfig(),
        stop: StopConfig = StopConfig(),
        *,
        plain: bool = False,
        is_raw: bool = False,
    ) -> Iterator[Event]:
        self.asked.append((list(prompt_ids), sampling, stop, plain))
        prefill, *rest = scripted_answer(len(prompt_ids), plain)
        yield prefill
        if self.failure is not None:
            raise self.failure
        yield from rest

    def next_logits(self, token_ids: Sequence[int]) -> list[float]:
        return [float(token) for token in range(128)]

    def forget_texts(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def fake_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeSession:
    """Stands behind open_session; the store knows the pair `demo`."""
    session = FakeSession()
    import_module("dspark.bench.heads")  # binds the true function, not the one below

    def open_session(
        files: PairFiles, runtime: RuntimeConfig, config: EngineConfig
    ) -> Generator[LoadProgress, None, FakeSession]:
        session.opened.append((files, runtime, config))
        yield LoadProgress("reading", 0, 1)
        return session

    def locate(name: str) -> PairFiles | None:
        return PairFiles(name, tmp_path / "target", tmp_path / "draft") if name == "demo" else None

    monkeypatch.setattr("dspark.engine.session.open_session", open_session)
    monkeypatch.setattr("dspark.hub.locate", locate, raising=False)
    return session


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def dspark(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs one command line: `dspark("generate", "Hi")`."""

    def call(*arguments: str) -> Outcome:
        code = run(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call
