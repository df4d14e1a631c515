"""The target writes answers to prompts, and prompts themselves, many at a time."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dspark.config import SamplingConfig, StopConfig
from dspark.engine.request import Request
from dspark.engine.session import Session
from dspark.errors import InputError
from dspark.events import Failed, Finished
from dspark.graft.data.answer_file import Answer
from dspark.plural import counted
from dspark.text.stream import TextCodec

Job = TypeVar("Job")
WHOLE_REASONS = ("stop_token", "stop_string")
SELF_PROMPT_TEMPERATURE = 1.0
SELF_PROMPT_TOKENS = (4, 160)  # shorter is a greeting or noise, longer never finished


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How answers are sampled; each answer's seed derives from `seed` and the prompt."""

    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Fitting:
    """Prompts of at most `longest` tokens, which leave room for an answer. `shortest` is the length
    of the shortest of all, `num_long` the number left out."""

    prompts: tuple[str, ...]
    longest: int
    shortest: int = 0
    num_long: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.num_long:
            return ()
        are = "is" if self.num_long == 1 else "are"
        return (
            f"{counted(self.num_long, 'prompt')} {are} left out: longer than {self.longest:,} "
            "tokens, half of --length",
        )

    def require_some(self) -> None:
        """Raises InputError if all prompts are too long."""
        if self.prompts or not self.num_long:
            return
        all_are = f"all {self.num_long:,} prompts are" if self.num_long > 1 else "the prompt is"
        raise InputError(
            f"{all_are} longer than --length {2 * self.longest} leaves room for: {self.longest} "
            f"tokens fit, the shortest has {self.shortest:,}",
            f"Give shorter prompts, or --length {2 * self.shortest} at least.",
        )


def fitting_prompts(codec: TextCodec | None, prompts: Sequence[str], longest: int) -> Fitting:
    """All of them without a tokenizer to count with."""
    if codec is None or not prompts:
        return Fitting(tuple(prompts), longest)
    sizes = [len(user_turn(codec, prompt)) for prompt in prompts]
    fitting = [prompt for prompt, size in zip(prompts, sizes, strict=True) if size <= longest]
    return Fitting(tuple(fitting), longest, min(sizes), len(prompts) - len(fitting))


def write_answers(
    session: Session, prompts: Iterable[str], settings: AnswerSettings, max_prompt_tokens: int
) -> Iterator[Answer]:
    """Answers in the order they finish; prompts of too many tokens are left out.

    Uses drafts if the session has a head: the same greedy answers, otherwise the same distribution.
    """
    plain = not session.has_drafter
    tokenizer = "" if session.tokenizer is None else session.tokenizer.fingerprint
    encoded = ((prompt, encode_prompt(session, prompt)) for prompt in prompts)
    jobs = (
        (prompt, _request(ids, settings, prompt, plain=plain))
        for prompt, ids in encoded
        if len(ids) <= max_prompt_tokens
    )
    for (prompt, request), done in _decode(session, ((job, job[1]) for job in jobs)):
        if len(done.token_ids) > 1:
            yield Answer(request.prompt_ids, done.token_ids, prompt, done.text, tokenizer)


def write_prompts(
    session: Session, count: int, seed: int, known: Mapping[int, str]
) -> Iterator[tuple[int, str]]:
    """Prompts written by the target from an open user turn: the attempts after those of `known`.

    In the order of their numbers, so that a stop loses none. Attempts that duplicate another, never
    end or end at once yield nothing.
    """
    opening, stop = _opening(session)
    shortest = SELF_PROMPT_TOKENS[0]

    def request(index: int) -> Request:
        sampling = SamplingConfig(SELF_PROMPT_TEMPERATURE, seed=_seed(seed, f"prompt {index}"))
        return Request(opening, sampling, stop, plain=True)

    first = max(known, default=-1) + 1
    attempts = _decode(session, ((i, request(i)) for i in range(first, count)))
    seen = set(known.values())
    for index, done in _in_order(attempts, first):
        text = done.text.strip()
        is_whole = done.reason in WHOLE_REASONS and len(done.token_ids) > shortest
        if is_whole and text and text not in seen:
            seen.add(text)
            yield index, text


def _in_order(
    numbered: Iterable[tuple[int, Finished]], first: int
) -> Iterator[tuple[int, Finished]]:
    waiting: dict[int, Finished] = {}
    for index, done in numbered:
        waiting[index] = done
        while first in waiting:
            yield first, waiting.pop(first)
            first += 1


def has_chat_template(session: Session) -> bool:
    return session.tokenizer is not None and session.tokenizer.has_chat_template


def encode_prompt(session: Session, prompt: str) -> tuple[int, ...]:
    """As user_turn. Raises InputError if the target has no tokenizer."""
    if session.tokenizer is None:
        return tuple(session.encode(prompt))
    return user_turn(session.tokenizer, prompt)


def user_turn(codec: TextCodec, prompt: str) -> tuple[int, ...]:
    """By the chat template; without one, plain text and a line break."""
    if codec.has_chat_template:
        return tuple(codec.encode_chat([{"role": "user", "content": prompt}]))
    return tuple(codec.encode(prompt + "\n"))


def _opening(session: Session) -> tuple[tuple[int, ...], StopConfig]:
    """The beginning of a prompt written by the target, and the tokens that end it."""
    longest = SELF_PROMPT_TOKENS[1]
    if has_chat_template(session):
        return _open_user_turn(session), StopConfig(max_tokens=longest)
    bos = None if session.tokenizer is None else session.tokenizer.bos_token_id
    if bos is None:
        raise InputError(
            "--prompts self: this base has no chat template and no BOS token to begin a text with",
            "Give prompts from a file, a folder or hf:owner/name.",
        )
    return (bos,), StopConfig(max_tokens=longest, strings=("\n",))


def _open_user_turn(session: Session) -> tuple[int, ...]:
    """The chat template's text before the user's first word: the common prefix of two prompts."""
    one, other = encode_prompt(session, "X"), encode_prompt(session, "7")
    shared = 0
    while one[shared] == other[shared]:
        shared += 1
    return one[:shared]


def _request(
    ids: tuple[int, ...], settings: AnswerSettings, prompt: str, *, plain: bool
) -> Request:
    sampling = SamplingConfig(settings.temperature, seed=_seed(settings.seed, prompt))
    stop = StopConfig(max_tokens=settings.max_tokens)
    return Request(ids, sampling, stop, plain, is_raw=True)  # the decoded text


def _seed(seed: int, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {what}".encode()).digest()[:6])


def _decode(
    session: Session, jobs: Iterable[tuple[Job, Request]]
) -> Iterator[tuple[Job, Finished]]:
    """Keeps the engine full; yields each job with its result."""
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
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Finished):
                    yield running.pop(event.request_id), event
    finally:
        engine.discard(running)
