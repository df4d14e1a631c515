"""The target writes answers to prompts, and prompts themselves, many at a time."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from dspark.config import SamplingConfig, StopConfig
from dspark.engine.request import Request
from dspark.engine.session import Session
from dspark.events import Finished
from dspark.graft.data import Answered

Job = TypeVar("Job")
SELF_PROMPT_TEMPERATURE = 1.0
SELF_PROMPT_TOKENS = (4, 160)  # shorter is a greeting or noise, longer never came to a point


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How answers are sampled; the seed of each comes from `seed` and the prompt."""

    max_tokens: int
    temperature: float
    seed: int


def write_answers(
    session: Session, prompts: Iterable[str], settings: AnswerSettings, max_prompt_tokens: int
) -> Iterator[Answered]:
    """Answers in the order they are finished; prompts of too many tokens are left out."""
    encoded = ((prompt, _encode_turn(session, prompt)) for prompt in prompts)
    jobs = (
        (prompt, _request(ids, settings, prompt))
        for prompt, ids in encoded
        if len(ids) <= max_prompt_tokens
    )
    for (prompt, request), done in _decode(session, ((job, job[1]) for job in jobs)):
        if len(done.token_ids) > 1:
            yield Answered(request.prompt_ids, done.token_ids, prompt, done.text)


def write_prompts(
    session: Session, count: int, seed: int, skip: int = 0
) -> Iterator[tuple[int, str]]:
    """Prompts of the target's own, numbered, from an open user turn: attempts skip ... count - 1.

    Attempts that repeat another, never end or end at once give none.
    """
    opening = _open_user_turn(session)
    shortest, longest = SELF_PROMPT_TOKENS
    stop = StopConfig(max_tokens=longest)

    def request(index: int) -> Request:
        sampling = SamplingConfig(SELF_PROMPT_TEMPERATURE, seed=_seed(seed, f"prompt {index}"))
        return Request(opening, sampling, stop, plain=True)

    seen: set[str] = set()
    for index, done in _decode(session, ((i, request(i)) for i in range(skip, count))):
        text = done.text.strip()
        is_whole = done.reason == "stop_token" and len(done.token_ids) > shortest
        if is_whole and text and text not in seen:
            seen.add(text)
            yield index, text


def _encode_turn(session: Session, prompt: str) -> tuple[int, ...]:
    return tuple(session.encode_chat([{"role": "user", "content": prompt}]))


def _open_user_turn(session: Session) -> tuple[int, ...]:
    """What the chat template puts before the user's first word: where two prompts still agree."""
    one, other = _encode_turn(session, "X"), _encode_turn(session, "7")
    shared = 0
    while one[shared] == other[shared]:
        shared += 1
    return one[:shared]


def _request(ids: tuple[int, ...], settings: AnswerSettings, prompt: str) -> Request:
    sampling = SamplingConfig(settings.temperature, seed=_seed(settings.seed, prompt))
    return Request(ids, sampling, StopConfig(max_tokens=settings.max_tokens), plain=True)


def _seed(seed: int, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {what}".encode()).digest()[:6])


def _decode(
    session: Session, jobs: Iterable[tuple[Job, Request]]
) -> Iterator[tuple[Job, Finished]]:
    """Keeps the engine full; each job comes back with how it ended."""
    engine = session.engine
    capacity = engine.config.max_requests if engine.target.spec.batches else 1
    waiting = iter(jobs)
    running: dict[int, Job] = {}
    try:
        while True:
            while len(running) < capacity and (following := next(waiting, None)) is not None:
                job, request = following
                running[engine.submit(request)] = job
            if not running:
                return
            for event in engine.step():
                if isinstance(event, Finished):
                    yield running.pop(event.request_id), event
    finally:
        engine.abandon()
