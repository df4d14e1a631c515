"""A request, and its state while it is being decoded."""

import itertools
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dspark.config import LogitsConfig, SamplingConfig, StopConfig
from dspark.drafters.base import DraftSlot
from dspark.engine.draft_backlog import DraftBacklog
from dspark.engine.logit_rules import LogitRules
from dspark.engine.sampling import Sampler
from dspark.events import DecodeStats, Finished, FinishReason, Piece, TokenLogprobs
from dspark.targets.base import Slot, Target
from dspark.text.grammar import Grammar
from dspark.text.stream import TextCodec, TextStream

State = Literal["waiting", "prefilling", "running", "finished"]


@dataclass(frozen=True, slots=True)
class Request:
    """Prompt ids and how to continue them. plain: decode without drafts. is_raw: unprocessed text,
    including the marks of thinking. The answer (after thinking that the prompt has begun) follows
    the grammar. num_logprobs: tell each token's log-probability and that many of the likeliest.
    calls_tools: the marks of calls are part of the text. tells_probs: tell the probabilities of
    each draft."""

    prompt_ids: tuple[int, ...]
    sampling: SamplingConfig = SamplingConfig()
    stop: StopConfig = StopConfig()
    plain: bool = False
    is_raw: bool = False
    logits: LogitsConfig = LogitsConfig()
    grammar: Grammar | None = None
    num_logprobs: int | None = None
    calls_tools: bool = False
    tells_probs: bool = False

    @property
    def has_rules(self) -> bool:
        """Whether its logits are changed before a token is chosen."""
        return self.logits != LogitsConfig() or self.grammar is not None

    @property
    def needs_host(self) -> bool:
        """Whether the host must see every row of its logits."""
        return self.has_rules or self.num_logprobs is not None or self.tells_probs

    @property
    def most_tokens(self) -> int:
        """Maximum number of new tokens, as far as they fit in the context."""
        return sys.maxsize if self.stop.max_tokens is None else self.stop.max_tokens


@dataclass(slots=True, eq=False)
class ActiveRequest:
    """The engine's state of a request between rounds."""

    request_id: int
    request: Request
    sampler: Sampler
    stream: TextStream | None
    slot: Slot
    draft_slot: DraftSlot | None
    stop_token_ids: frozenset[int]
    state: State = "waiting"
    is_open: bool = False  # whether it holds caches
    num_cached: int = 0  # tokens in its caches that no round put there
    num_reused: int = 0  # prompt tokens found in caches of other requests
    preemptions: int = 0
    num_thinking: int = 0
    chunked_at: float = 0.0  # when the last chunk of its prompt was done
    anchor: int = -1
    token_ids: list[int] = field(default_factory=list)
    rules: LogitRules | None = None  # of the request's logits, over token_ids
    finish_reason: FinishReason | None = None
    is_cancelled: bool = False
    backlog: DraftBacklog = field(default_factory=DraftBacklog)
    rounds: int = 0
    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    parked: int = 0  # rounds without drafts because they do not pay
    draft_figures: tuple[float, float] = (0.0, 0.0)  # why, in the last of them
    submitted_at: float = field(default_factory=time.perf_counter)
    decoding_since: float = 0.0
    last_token_at: float = 0.0

    @property
    def is_full(self) -> bool:
        """Whether max_tokens are written; a round's tokens beyond that are cut off."""
        return len(self.token_ids) >= self.request.most_tokens

    @property
    def known(self) -> tuple[int, ...]:
        """What its caches hold before the next round: all but the anchor."""
        return (*self.request.prompt_ids, *self.token_ids[:-1])

    @property
    def num_to_prefill(self) -> int:
        return len(self.known) - self.num_cached

    def emit(
        self,
        tokens: Iterable[tuple[int, bool, float | None]],
        logprobs: Sequence[TokenLogprobs] | None = None,
    ) -> tuple[Piece, ...]:
        """Append (id, is_draft, confidence) tokens up to and including the one that ends it."""
        pieces = []
        known = logprobs or itertools.repeat(None)
        for (token_id, is_draft, confidence), known_logprobs in zip(tokens, known, strict=False):
            if self.is_full or self.finish_reason is not None:
                break
            self.token_ids.append(token_id)
            if token_id in self.stop_token_ids:
                self.finish_reason = "stop_token"
            text = self._text_of(token_id)
            is_thinking = self.stream is not None and self.stream.is_thinking
            self.num_thinking += is_thinking
            piece = Piece(token_id, text, is_draft, confidence, is_thinking, known_logprobs)
            pieces.append(piece)
            self.last_token_at = time.perf_counter()
        return tuple(pieces)

    def count_round(
        self, drafted: int, verified: int, accepted: int, *, is_parked: bool = False
    ) -> None:
        """Add one round. As in the reference, max_tokens ends a request once they are committed,
        not when the last one is chosen: its cache then holds the whole answer."""
        self.rounds += 1
        self.parked += is_parked
        self.drafted += drafted
        self.verified += verified
        self.accepted += accepted
        if self.finish_reason is None and self.rounds + self.accepted >= self.request.most_tokens:
            self.finish_reason = "max_tokens"

    def _text_of(self, token_id: int) -> str:
        if self.stream is None or self.finish_reason == "stop_token":
            return ""
        text = self.stream.push(token_id)
        if self.stream.is_stopped:
            self.finish_reason = "stop_string"
        return text

    def finish(self, reason: FinishReason) -> Finished:
        ids, stats, stream = tuple(self.token_ids), self._stats(), self.stream
        if stream is None:
            return Finished(self.request_id, reason, ids, "", stats)
        tail = stream.finish()
        return Finished(
            self.request_id,
            reason,
            ids,
            stream.answer,
            stats,
            tail=tail,
            thinking=stream.thinking,
            ends_thinking=bool(tail) and stream.is_thinking,
        )

    def _stats(self) -> DecodeStats:
        decoding_since = self.decoding_since or time.perf_counter()
        return DecodeStats(
            prompt_tokens=len(self.request.prompt_ids),
            new_tokens=len(self.token_ids),
            rounds=self.rounds,
            drafted=self.drafted,
            verified=self.verified,
            accepted=self.accepted,
            prefill_seconds=decoding_since - self.submitted_at,
            decode_seconds=max(self.last_token_at - decoding_since, 0.0),
            cached_tokens=self.num_reused,
            thinking_tokens=self.num_thinking,
            preemptions=self.preemptions,
            parked=self.parked,
            draft_cost=self.draft_figures[0],
            draft_tokens=self.draft_figures[1],
        )


def activate(
    request_id: int,
    request: Request,
    slot: Slot,
    draft_slot: DraftSlot | None,
    codec: TextCodec | None,
    stop_token_ids: frozenset[int],
    entropy: int,
    target: Target,
) -> ActiveRequest:
    """The initial state of a request; `entropy` replaces a missing seed."""
    active = ActiveRequest(
        request_id=request_id,
        request=request,
        sampler=Sampler(request.sampling, entropy),
        stream=_stream(codec, request) if codec else None,
        slot=slot,
        draft_slot=draft_slot,
        stop_token_ids=frozenset() if request.stop.ignore_stop_tokens else stop_token_ids,
    )
    if request.has_rules:
        active.rules = _rules(request, active.token_ids, codec, target)
    return active


def _rules(
    request: Request, written: list[int], codec: TextCodec | None, target: Target
) -> LogitRules:
    matcher = None
    if request.grammar is not None:
        gate = codec.answer_gate(request.prompt_ids) if codec and not request.is_raw else None
        matcher = request.grammar.matcher(gate)
    num_tokens, device = target.spec.vocab_size, target.device
    return LogitRules(request.logits, request.prompt_ids, written, num_tokens, device, matcher)


def _stream(codec: TextCodec, request: Request) -> TextStream:
    prompt_ids = None if request.is_raw else request.prompt_ids
    stops, shows_calls = request.stop.strings, request.calls_tools
    return TextStream(codec, stops, prompt_ids, shows_calls=shows_calls)
