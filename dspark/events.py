"""Events that the library yields to its callers, all frozen; it takes no callbacks."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop_token", "stop_string", "max_tokens", "context", "cancelled"]


@dataclass(frozen=True, slots=True)
class Decided:
    """The meaning found for a name, in one line."""

    text: str


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """Bytes of one file fetched or converted so far; `total` is None while unknown."""

    name: str
    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """One step of loading a pair: `stage` in plain words, `done` of `total` steps."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The target's own log-probability of a token, before temperature and any other change, and
    its likeliest tokens there as (id, log-probability)."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """One token with the text that it completes ("" inside a split character).

    `is_draft` is True for a drafted token; `confidence` is the head's own probability that the
    target accepts it, given that all before it were (None without a confidence head).
    `is_thinking` is True for thinking, False for the answer; `logprobs` only where asked for.
    """

    token_id: int
    text: str
    is_draft: bool
    confidence: float | None = None
    is_thinking: bool = False
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """Prompt tokens processed. The last one of a request carries the token that comes out of
    prefill: the first anchor, which belongs to no round."""

    request_id: int
    done: int
    total: int
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class Round:
    """One draft, verify, accept and commit of one request.

    `draft` holds every drafted id, `verified` the number the target checked, `accepted` the
    number it kept, `next` the correction or bonus id. `pieces` is the reader's text (cut at a
    stop), `rejected` the drafted pieces that the target checked and refused. `is_parked`: nothing
    was drafted, because plain decoding is faster at present: a round with drafts takes `draft_cost`
    plain ones and gives `draft_tokens` (0: not known). `expert_reads` routed experts were read in
    its pass, by all requests together, `expert_far` of them not from memory, each of `expert_bytes`
    (0 without routing).
    Choosing what is kept takes `accept_seconds`, after `verify_seconds`. Where asked for,
    `draft_probs` are the drafter's probabilities of the drafts (None if nothing was drawn) and
    `target_probs` the target's of those it checked, both given the drafts before.
    """

    request_id: int
    index: int
    anchor: int
    draft: tuple[int, ...]
    confidence: tuple[float, ...] | None
    verified: int
    accepted: int
    next: int
    pieces: tuple[Piece, ...]
    rejected: tuple[Piece, ...]
    context_tokens: int
    draft_seconds: float
    verify_seconds: float
    seconds: float
    is_parked: bool = False
    draft_cost: float = 0.0
    draft_tokens: float = 0.0
    expert_reads: int = 0
    expert_far: int = 0
    expert_bytes: int = 0
    accept_seconds: float = 0.0
    draft_probs: tuple[float, ...] | None = None
    target_probs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of an answer from somebody who says nothing of rounds, a server; `seconds` after
    the delta before, 0 for the first."""

    request_id: int
    pieces: tuple[Piece, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class DecodeStats:
    """Sums over one request. Rates are tokens per second; tau counts the bonus token and leaves out
    the `parked` rounds, in which nothing was drafted because it does not pay.

    `cached_tokens` of the prompt needed no pass; `thinking_tokens` of the new ones are thinking;
    `preemptions` is how often it had to make way for others; `draft_cost` and `draft_tokens` are
    those of the last parked round.
    """

    prompt_tokens: int
    new_tokens: int
    rounds: int
    drafted: int
    verified: int
    accepted: int
    prefill_seconds: float
    decode_seconds: float
    cached_tokens: int = 0
    thinking_tokens: int = 0
    preemptions: int = 0
    parked: int = 0
    draft_cost: float = 0.0
    draft_tokens: float = 0.0

    @property
    def tau(self) -> float:
        rounds = self.rounds - self.parked
        return 1 + self.accepted / rounds if rounds else min(self.rounds, 1.0)

    @property
    def is_parked(self) -> bool:
        """Whether drafting was parked most of the time."""
        return 2 * self.parked > self.rounds

    @property
    def verified_per_round(self) -> float:
        rounds = self.rounds - self.parked
        return self.verified / rounds if rounds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """The token that comes out of prefill is not counted."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0

    @property
    def total_tokens_per_second(self) -> float:
        seconds = self.prefill_seconds + self.decode_seconds
        return self.new_tokens / seconds if seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a request. `token_ids` includes a stop token, `text` never does.

    `text` is the answer alone, `thinking` the thinking. `tail` is the end of
    `text` (of `thinking`, if `ends_thinking`) that no piece carried, held back for a stop string
    that never came.
    """

    request_id: int
    reason: FinishReason
    token_ids: tuple[int, ...]
    text: str
    stats: DecodeStats
    tail: str = ""
    thinking: str = ""
    ends_thinking: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a request that raised; the others continue."""

    request_id: int
    error: Exception


Event = PrefillProgress | Round | Finished
EngineEvent = Event | Failed
