"""A scripted engine for reports: its rounds, times and texts are drawn from a seed."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dspark.bench.conditions import Condition
from dspark.bench.config import BenchConfig
from dspark.bench.heads import OpenHead, OpenHeads
from dspark.bench.prompts import PromptText
from dspark.bench.report_document import Measured, whole_document
from dspark.bench.sections import run_sections
from dspark.bench.suites import PromptSet
from dspark.config import EngineConfig, SamplingConfig, StopConfig
from dspark.events import DecodeStats, Event, Finished, PrefillProgress, Round
from dspark.progress import follow

TEXTS = tuple(
    PromptText(category, f"{category} question {number}")
    for category in ("chat", "code", "math")
    for number in range(3)
)
STEP = 0.010  # seconds of a plain round


class ScriptedSession:
    """Text is a function of the prompt, unless `is_lossless` is False, which changes drafted ones;
    `jitter` is the spread of a round's time from answer to answer, `speed` divides all times."""

    name = "scripted"
    has_drafter = True
    context_limit = 4096
    tokenizer = SimpleNamespace(has_chat_template=True, has_thinking_switch=True)
    engine = SimpleNamespace(drafter=None)

    def __init__(
        self,
        seed: int = 0,
        *,
        is_lossless: bool = True,
        jitter: float = 0.01,
        speed: float = 1.0,
        draft_speed: float = 1.0,
        acceptance: float = 0.7,
    ) -> None:
        self._dice = random.Random(seed)
        self._is_lossless, self._jitter = is_lossless, jitter
        self._speed, self._draft_speed, self._acceptance = speed, draft_speed, acceptance
        self.runtime = SimpleNamespace(device="cpu", dtype="float32")

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def encode_prompt(self, text: str) -> list[int]:
        return [1, *self.encode(text)]

    def encode_chat(self, messages: Any, *, thinking: bool) -> list[int]:
        return [2 + thinking, *self.encode(messages[0]["content"])]

    def forget_texts(self) -> None:
        pass

    def close(self) -> None:
        pass

    def next_logits(self, token_ids: Sequence[int]) -> list[float]:
        return [float(token) for token in range(1000)]

    def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingConfig = SamplingConfig(),
        stop: StopConfig = StopConfig(),
        *,
        plain: bool = False,
    ) -> Iterator[Event]:
        text = random.Random(sum(prompt_ids))
        ids = [text.randrange(900) for _ in range(stop.max_tokens or 1)]
        if not plain and not self._is_lossless:
            ids[-1] += 1
        slow = (1 + self._dice.uniform(-self._jitter, self._jitter)) / self._speed
        luck = random.Random(len(prompt_ids))  # accepted drafts are no matter of the clock
        yield PrefillProgress(0, len(prompt_ids), len(prompt_ids))
        rounds, seconds, left = [], 0.0, len(ids) - 1
        while left > 0:
            rounds.append(self._round(plain, slow, luck, len(rounds)))
            seconds += rounds[-1].seconds + 0.0003 * slow
            left -= rounds[-1].accepted + 1
            yield rounds[-1]
        stats = DecodeStats(
            prompt_tokens=len(prompt_ids),
            new_tokens=len(ids),
            rounds=len(rounds),
            drafted=sum(len(each.draft) for each in rounds),
            verified=sum(each.verified for each in rounds),
            accepted=sum(each.accepted for each in rounds),
            prefill_seconds=0.001 * len(prompt_ids) * slow,
            decode_seconds=seconds,
            parked=sum(each.is_parked for each in rounds),
        )
        yield Finished(0, "max_tokens", tuple(ids), "", stats)

    def _round(self, plain: bool, slow: float, luck: random.Random, index: int) -> Round:
        is_parked = not plain and index % 7 == 6
        drafted = 0 if plain or is_parked else 3
        verified = min(drafted, luck.randint(1, 5))
        accepted = 0
        while accepted < verified and luck.random() < self._acceptance:
            accepted += 1
        draft = 0.003 * slow / self._draft_speed * bool(drafted)
        verify = STEP * slow / (1.0 if plain else self._draft_speed)
        return Round(
            request_id=0,
            index=index,
            anchor=0,
            draft=tuple(range(drafted)),
            confidence=tuple(luck.uniform(0.4, 1.0) for _ in range(drafted)) or None,
            verified=verified,
            accepted=accepted,
            next=0,
            pieces=(),
            rejected=(),
            context_tokens=9,
            draft_seconds=draft,
            verify_seconds=verify,
            seconds=draft + verify + 0.0005 * slow,
            is_parked=is_parked,
        )


def measured(
    session: ScriptedSession,
    *,
    trials: int = 3,
    conditions: Sequence[Condition] = (Condition(),),
    texts: Sequence[PromptText] = TEXTS,
) -> Measured:
    opened = OpenHeads(session, (OpenHead("dspark", None, "dspark", 7, {}, session),))  # type: ignore[arg-type]
    config = BenchConfig(trials=trials, max_tokens=20)
    sections = follow(run_sections(opened, texts, config, conditions, is_timed=True))
    prompts = PromptSet("scripted", "tests", None, None, "as it is", tuple(texts))
    return Measured(sections, opened, prompts, None, {"target": "abc"}, None, is_pair=True)


def document(found: Measured, rounds: Path | None = None, conditions: int = 1) -> dict[str, Any]:
    config = BenchConfig(trials=3, max_tokens=20)
    return whole_document(found, config, EngineConfig(), conditions, "dspark bench", rounds)
