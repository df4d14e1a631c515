"""The engine: any number of requests, from prompt to end, round after round.

Plain decoding is the same loop without a drafter. Every request draws its own numbers and owns its
cache, so that company never changes what it writes.
"""

import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from dspark.config import EngineConfig
from dspark.drafters.base import Drafter, DraftSlot
from dspark.engine.choice import choose_rounds
from dspark.engine.request import ActiveRequest, Request, activate
from dspark.engine.rounds import HostRounds, Outcome, room_behind
from dspark.engine.scheduler import Scheduler
from dspark.engine.sps_watch import SpsWatch
from dspark.engine.text import TextCodec
from dspark.engine.thinking import Span
from dspark.errors import InputError
from dspark.events import Event, Finished, LoadProgress, Piece, PrefillProgress, Round
from dspark.plural import counted
from dspark.targets.base import Slot, Target


@dataclass(frozen=True, slots=True)
class _Warm:
    """The caches of the last finished request, for a prompt that continues it."""

    token_ids: tuple[int, ...]
    slot: Slot
    draft_slot: DraftSlot | None


class Engine:
    """Owns a target, perhaps a drafter, and the requests under way."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        scheduler: Scheduler,
        codec: TextCodec | None = None,
        config: EngineConfig = EngineConfig(),
        sps_watch: SpsWatch | None = None,
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.scheduler = scheduler
        self.config = config
        self._codec = codec
        self._entropy = random.Random(config.entropy)
        self._rounds = choose_rounds(target, drafter, scheduler, config)
        # the device has sent its next round before this one is read: no moment to measure in
        self._sps_watch = sps_watch if isinstance(self._rounds, HostRounds) else None
        self._waiting: deque[ActiveRequest] = deque()
        self._active: list[ActiveRequest] = []
        self._warm: _Warm | None = None
        self._next_id = 0

    def submit(self, request: Request) -> int:
        """Queue a request; returns its id. Raises InputError where it cannot be decoded."""
        self._check(request)
        active = activate(
            self._next_id,
            request,
            slot=None,
            draft_slot=None,
            codec=self._codec,
            stop_token_ids=self._stop_token_ids(),
            entropy=self._entropy.getrandbits(64),
        )
        self._next_id += 1
        self._waiting.append(active)
        return active.request_id

    def cancel(self, request_id: int) -> None:
        """End a request at its next round, keeping what it has written. Safe from any thread."""
        for active in [*self._waiting, *self._active]:
            if active.request_id == request_id:
                active.is_cancelled = True

    def run(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Decode all requests, together as far as they fit; events come as they happen."""
        pending = iter(requests)
        exhausted = False
        while True:
            while not exhausted and self.num_requests < self._rounds.capacity:
                following = next(pending, None)
                exhausted = following is None
                if following is not None:
                    self.submit(following)
            if not self.num_requests:
                return
            yield from self.step()

    @property
    def num_requests(self) -> int:
        return len(self._waiting) + len(self._active)

    def abandon(self) -> None:
        """Forget every request under way; nothing more comes of them."""
        self._waiting.clear()
        self._active.clear()
        self._rounds.forget()

    def step(self) -> Iterator[Event]:
        """Prefill what waits, then one round of everything active."""
        while self._waiting and self._admits(self._waiting[0]):
            yield from self._prefill(self._waiting[0])
        yield from self._drop_cancelled()
        if self._active:
            outcomes = self._rounds.advance(tuple(self._active))
            yield from self._report(outcomes)
            if self._sps_watch is not None and self.drafter is not None and self._active:
                self._sps_watch.follow(self.target, self.drafter, outcomes)

    def warm_up(self) -> Iterator[LoadProgress]:
        """What the first round would have to wait for."""
        return self._rounds.warm_up()

    def _stop_token_ids(self) -> frozenset[int]:
        """As the model's config and its tokenizer state them."""
        stated = self.target.spec.stop_token_ids
        return stated if self._codec is None else stated | self._codec.stop_token_ids

    def _admits(self, active: ActiveRequest) -> bool:
        """Whether it can begin beside those under way; the warm caches give up their room."""
        if len(self._active) >= self._rounds.capacity:
            return False
        if not self._active:
            self._rounds.forget()
        if not self._rounds.has_room(active.request):
            self._warm = None
        return self._rounds.has_room(active.request) or not self._active

    def _check(self, request: Request) -> None:
        limit, size = self.target.spec.context_limit, len(request.prompt_ids)
        if size == 0:
            raise InputError("the prompt is empty", "Write something to continue.")
        if size >= limit:
            raise InputError(
                f"the prompt has {counted(size, 'token')}, the context holds {limit:,}",
                "Shorten it.",
            )
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= self.target.spec.vocab_size:
            raise InputError(
                f"a token id is outside the vocabulary of {self.target.spec.vocab_size} tokens"
            )
        if request.most_tokens < 1:
            raise InputError("max-tokens must be at least 1")
        self._rounds.check(request)

    def _prefill(self, active: ActiveRequest) -> Iterator[Event]:
        """The prompt in chunks, then its own next token, which is the first anchor."""
        self._open(active)
        prompt = active.request.prompt_ids
        start = active.num_cached
        while start < len(prompt):
            if active.is_cancelled:
                self._waiting.remove(active)
                yield active.finish("cancelled")
                return
            end = min(start + self.config.prefill_chunk, len(prompt))
            logits = self._prefill_chunk(active, prompt[start:end])
            start = end
            if start < len(prompt):
                yield PrefillProgress(active.request_id, start, len(prompt))
        active.anchor, _ = active.sampler.choose(logits, len(prompt))
        active.decoding_since = time.perf_counter()
        pieces = active.emit([(active.anchor, False, None)])
        self._waiting.remove(active)
        yield PrefillProgress(active.request_id, start, len(prompt), pieces)
        yield from self._finish_or_keep(active)

    @torch.inference_mode()
    def _prefill_chunk(self, active: ActiveRequest, ids: Sequence[int]) -> torch.Tensor:
        chunk = torch.tensor(ids, device=self.target.device)
        result = self.target.prefill(active.slot, chunk, len(active.request.prompt_ids))
        if self.drafter is not None and active.draft_slot is not None:
            self.drafter.extend([active.draft_slot], [chunk], [result.taps])
        return result.logits[0]

    def _open(self, active: ActiveRequest) -> None:
        """Fresh caches, or those of the last request as far as this prompt continues it."""
        drafts = self.drafter is not None and not active.request.plain
        warm, self._warm = self._warm, None
        if warm is not None and (warm.draft_slot is not None) == drafts:
            prompt = active.request.prompt_ids
            shared = _shared_prefix(warm.token_ids, prompt)
            if shared and self.target.truncate(warm.slot, shared, len(prompt)):
                if self.drafter is not None and drafts:
                    self.drafter.truncate(warm.draft_slot, shared)
                active.slot, active.draft_slot = warm.slot, warm.draft_slot
                active.num_cached = shared
                self._rounds.reserve(active)
                return
        active.slot = self.target.open()
        active.draft_slot = self.drafter.open() if self.drafter is not None and drafts else None
        self._rounds.reserve(active)

    def _report(self, outcomes: Sequence[Outcome]) -> list[Event]:
        events: list[Event] = []
        for outcome in outcomes:
            events.append(self._round_event(outcome))
            self._active.remove(outcome.active)
            events.extend(self._finish_or_keep(outcome.active))
        return events

    def _round_event(self, outcome: Outcome) -> Round:
        active, ids, num_accepted = outcome.active, outcome.draft, outcome.accepted
        confidence = outcome.confidence or (None,) * len(ids)
        refused = ids[num_accepted : outcome.verified]
        rejected = _preview(active, ids[:num_accepted], refused, confidence[num_accepted:])
        anchor = active.anchor
        pieces = active.emit(
            [
                *((ids[k], True, confidence[k]) for k in range(num_accepted)),
                (outcome.next_id, False, None),
            ]
        )
        active.anchor = outcome.next_id
        active.count_round(len(ids), outcome.verified, num_accepted)
        return Round(
            request_id=active.request_id,
            index=active.rounds - 1,
            anchor=anchor,
            draft=ids,
            confidence=outcome.confidence,
            verified=outcome.verified,
            accepted=num_accepted,
            next=outcome.next_id,
            pieces=pieces,
            rejected=rejected,
            context_tokens=len(active.request.prompt_ids) + len(active.token_ids),
            draft_seconds=outcome.draft_seconds,
            verify_seconds=outcome.verify_seconds,
            seconds=outcome.seconds,
        )

    def _finish_or_keep(self, active: ActiveRequest) -> list[Finished]:
        """Back to the active ones, unless this was its last round."""
        reason = active.finish_reason
        if reason is None and room_behind(self.target, active) < 0:
            reason = "max_tokens" if active.is_full else "context"
        if reason is None:
            self._active.append(active)
            return []
        self._keep_warm(active)
        return [active.finish(reason)]

    def _drop_cancelled(self) -> list[Finished]:
        cancelled = [active for active in self._active if active.is_cancelled]
        for active in cancelled:
            self._active.remove(active)
            self._keep_warm(active)
        return [active.finish("cancelled") for active in cancelled]

    def _keep_warm(self, active: ActiveRequest) -> None:
        tokens = (*active.request.prompt_ids, *active.token_ids)
        committed = tokens[: self.target.length(active.slot)]
        self._warm = _Warm(committed, active.slot, active.draft_slot)


def _preview(
    active: ActiveRequest,
    accepted: Sequence[int],
    refused: Sequence[int],
    confidence: Sequence[float | None],
) -> tuple[Piece, ...]:
    """Pieces of the refused drafts, as they would have read."""
    spans = [Span("")] * len(refused)
    if active.stream is not None and refused:
        spans = active.stream.preview([*accepted, *refused])[len(accepted) :]
    return tuple(
        Piece(token_id, span.text, True, c, span.is_thinking)
        for token_id, span, c in zip(refused, spans, confidence, strict=False)
    )


def _shared_prefix(known: Sequence[int], prompt: Sequence[int]) -> int:
    """Tokens that need no pass; the prompt's last one always does, for its logits."""
    shared = 0
    for a, b in zip(known, prompt[:-1], strict=False):
        if a != b:
            break
        shared += 1
    return shared
