"""The engine: any number of requests, from prompt to end, step after step.

Plain decoding is the same loop without a drafter. Every request has its own random numbers and
cache, so the rest of the batch never changes its output. `submit` and `cancel` only queue and may
be called from any thread; the caller of `step` does all the work.
"""

import itertools
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch

from dspark.config import GPU_PREFILL_CHUNK, PREFILL_CHUNK, EngineConfig
from dspark.drafters.base import Drafter
from dspark.engine.current_device import each_on_device, on_device
from dspark.engine.logprobs import token_logprobs
from dspark.engine.machine_errors import is_of_the_machine
from dspark.engine.request import ActiveRequest, Request, State, activate
from dspark.engine.request_caches import RequestCaches
from dspark.engine.round_events import round_event
from dspark.engine.rounds.choose import choose_rounds
from dspark.engine.rounds.round_runner import context_left
from dspark.engine.sampling import check_sound
from dspark.engine.schedule.parking import Parking
from dspark.engine.schedule.policies import Scheduler
from dspark.engine.schedule.sps_watch import SpsWatch
from dspark.errors import InputError
from dspark.events import EngineEvent, Event, Failed, LoadProgress, PrefillProgress
from dspark.plural import counted
from dspark.targets.base import Target
from dspark.text.stream import TextCodec
from dspark_kernels.backend import choose_backend


class Engine:
    """Owns a target, optionally a drafter, and the running requests."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        scheduler: Scheduler,
        codec: TextCodec | None = None,
        config: EngineConfig = EngineConfig(),
        sps_watch: SpsWatch | None = None,
        parking: Parking | None = None,
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.scheduler = scheduler
        self.config = config
        default = target.spec.chunk or default_chunk(target.device, target.dtype)
        self._chunk_size = config.prefill_chunk or default
        self._codec = codec
        self._entropy = random.Random(config.entropy)
        self._parking = parking
        with on_device(target.device):
            self._rounds = choose_rounds(target, drafter, scheduler, config, parking, sps_watch)
        self._sps_watch = sps_watch
        if config.cache_bytes is not None and not self._rounds.room.pools:
            raise InputError(
                "keys and values of this target are not on pages, so their memory has no limit",
                "Leave --kv-memory out.",
            )
        budget = config.prefix_cache_bytes
        self._caches = RequestCaches(target, drafter, self._rounds, budget)
        self._requests: dict[int, ActiveRequest] = {}  # all running, oldest first
        self._submitted: deque[ActiveRequest] = deque()
        self._cancelled: deque[int] = deque()
        self._ids = itertools.count()
        self._untold: list[EngineEvent] = []  # of a step under way, or of one that raised

    # -- from any thread --------------------------------------------------------------------------

    def submit(self, request: Request) -> int:
        """Queue a request; returns its id. Raises InputError if it cannot be decoded."""
        self.check(request)
        active = activate(
            next(self._ids),
            request,
            slot=None,
            draft_slot=None,
            codec=self._codec,
            stop_token_ids=self.stop_token_ids,
            entropy=self._entropy.getrandbits(64),
            target=self.target,
        )
        self._submitted.append(active)
        return active.request_id

    def check(self, request: Request) -> None:
        """Raises InputError if it cannot be decoded. From any thread."""
        limit, size = self.target.spec.context_limit, len(request.prompt_ids)
        if size == 0:
            raise InputError("the prompt is empty", "Give a prompt that is not empty.")
        if size >= limit:
            raise InputError(
                f"the prompt has {counted(size, 'token')}, the context holds {limit:,}",
                "Shorten it.",
            )
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= self.target.spec.vocab_size:
            raise InputError(
                f"a token id is outside the vocabulary of {self.target.spec.vocab_size} tokens"
            )
        if any(not 0 <= i < self.target.spec.vocab_size for i, _ in request.logits.logit_bias):
            raise InputError("logit_bias names a token id outside the vocabulary")
        if request.most_tokens < 1:
            raise InputError("max-tokens must be at least 1")
        self._rounds.room.check(request)

    def cancel(self, request_id: int) -> None:
        """End a request at the next step, keeping its output so far."""
        self._cancelled.append(request_id)

    def holds(self, request_id: int) -> bool:
        """Whether a request is running or queued."""
        return request_id in self._requests or any(
            active.request_id == request_id for active in [*self._submitted]
        )

    @property
    def num_requests(self) -> int:
        return len(self._requests) + len(self._submitted)

    @property
    def num_waiting(self) -> int:
        """Of these, those that nothing has been run of, or that made way for others."""
        known = [*self._requests.values()]  # at once: another thread changes the table
        return len(self._submitted) + sum(active.state == "waiting" for active in known)

    # -- from the thread that decodes -------------------------------------------------------------

    def run(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Decode all requests, batched as far as they fit, yielding events as they happen. The
        first failure is raised; closing the iterator early ends all of them."""
        pending, request_ids = iter(requests), set[int]()
        exhausted = False
        try:
            while True:
                while not exhausted and self.num_requests < self._rounds.capacity:
                    following = next(pending, None)
                    exhausted = following is None
                    if following is not None:
                        request_ids.add(self.submit(following))
                if not self.num_requests:
                    return
                for event in self.step():
                    if isinstance(event, Failed):
                        raise event.error
                    yield event
        finally:
            self.discard(request_ids)

    def step(self) -> list[EngineEvent]:
        """At most one chunk of prompts, then one round of everything that was running.

        An error of the machine is raised, since it is no request's own; the requests stay under
        way, and what the step has to tell comes with the next one.
        """
        with on_device(self.target.device):
            return self._step()

    def _step(self) -> list[EngineEvent]:
        began = time.perf_counter()
        self._take_in()
        self._untold += self._drop_cancelled()
        running = self._with_room()
        spent = time.perf_counter() - began
        self._untold.extend(self._prefill_some())
        if running:
            self._untold.extend(self._advance(running, spent))
        if not self._requests:
            self._caches.check_idle()
            self._save_learned()
        events, self._untold = self._untold, []
        return events

    def _save_learned(self) -> None:
        """Of parking and passes, for the next process."""
        if self._parking is not None:
            self._parking.save()
        if self._sps_watch is not None:
            self._sps_watch.save()

    def discard(self, request_ids: Iterable[int]) -> None:
        """Drop requests; they yield no further events."""
        self._take_in()
        for request_id in request_ids:
            if request_id in self._requests:
                self._close(self._requests[request_id])

    def forget_texts(self) -> None:
        """Release the caches of finished requests: the next prompt is run whole."""
        self._caches.drop_kept()

    def close(self) -> None:
        """Drop every request and release all caches."""
        self._take_in()
        self.discard([*self._requests])
        self.forget_texts()
        self._rounds.forget()

    def warm_up(self) -> Iterator[LoadProgress]:
        """Compile and capture ahead of the first round."""
        return each_on_device(self.target.device, self._rounds.warm_up())

    # -- the table of requests --------------------------------------------------------------------

    def _in(self, state: State) -> list[ActiveRequest]:
        return [active for active in self._requests.values() if active.state == state]

    def _take_in(self) -> None:
        while self._submitted:
            active = self._submitted.popleft()
            self._requests[active.request_id] = active
            if self._parking is not None:
                self._parking.begin_text()
        while self._cancelled:
            active_or_none = self._requests.get(self._cancelled.popleft())
            if active_or_none is not None:
                active_or_none.is_cancelled = True

    def _drop_cancelled(self) -> list[EngineEvent]:
        cancelled = [active for active in self._requests.values() if active.is_cancelled]
        for active in cancelled:
            self._close(active, is_kept=active.state == "running")
        return [active.finish("cancelled") for active in cancelled]

    def _finish_if_over(self, active: ActiveRequest) -> list[EngineEvent]:
        reason = active.finish_reason
        if reason is None and context_left(self.target, active) < 0:
            reason = "max_tokens" if active.is_full else "context"
        if reason is None:
            return []
        self._close(active, is_kept=True)
        return [active.finish(reason)]

    def _fail(self, active: ActiveRequest, error: Exception) -> list[EngineEvent]:
        self._close(active)
        return [Failed(active.request_id, error)]

    def _close(self, active: ActiveRequest, *, is_kept: bool = False) -> None:
        """Remove from the table; its caches wait for a prompt that continues it, or are
        released."""
        del self._requests[active.request_id]
        active.state = "finished"
        if is_kept:
            self._rounds.settle(active)
            self._caches.keep(active)
        else:
            self._caches.close(active)

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Stop tokens from the model's config and its tokenizer."""
        stated = self.target.spec.stop_token_ids
        return stated if self._codec is None else stated | self._codec.stop_token_ids

    # -- prompts ----------------------------------------------------------------------------------

    def _prefill_some(self) -> Iterator[EngineEvent]:
        """Chunks of prompts, one chunk's tokens at most together: what others wait for. Where
        chunks begin does not depend on company, so that no bit of a cache does."""
        budget = self._chunk_size
        for active in self._admitted():
            try:
                if active.state == "waiting" and not self._admit(active):
                    return
                size = min(self._chunk_size, active.num_to_prefill)
                if size > budget:
                    return
                budget -= size
                events = self._prefill_chunk(active)
            except Exception as error:  # whatever one prompt does, the others go on
                if is_of_the_machine(error):
                    self._begin_anew(active)
                    raise
                events = self._fail(active, error)
            yield from events

    def _admitted(self) -> Iterator[ActiveRequest]:
        """Prompts being prefilled, the longest waiting first, then waiting ones, the oldest
        first."""
        yield from sorted(self._in("prefilling"), key=lambda active: active.chunked_at)
        for active in self._in("waiting"):
            if self._caches.num_open >= self._rounds.capacity:
                return
            yield active

    def _admit(self, active: ActiveRequest) -> bool:
        """False if it has to wait for room."""
        if not self._caches.num_open:
            self._rounds.forget()
        if not self._caches.open(active):
            return False
        active.state = "prefilling"
        return True

    def _with_room(self) -> list[ActiveRequest]:
        """The running requests whose next round has room. Where memory is short, the newest one
        makes way: it waits with its tokens and goes on once there is room."""
        for active in self._in("running"):
            while active.state == "running" and not self._caches.reserve(active):
                if self._caches.num_open == 1:
                    self._close(active, is_kept=True)
                    self._untold.append(active.finish("context"))
                else:
                    self._preempt(self._caches.newest())
        return self._in("running")

    def _preempt(self, active: ActiveRequest) -> None:
        self._rounds.forget()  # one that is under way has results of it
        self._caches.close(active)
        active.state = "waiting"
        active.preemptions += 1

    def _begin_anew(self, active: ActiveRequest) -> None:
        """Nobody knows how much of a chunk that failed is in the caches."""
        self._caches.close(active)
        active.state = "waiting"

    @torch.inference_mode()
    def _prefill_chunk(self, active: ActiveRequest) -> list[EngineEvent]:
        """The next chunk; after the last one, the prompt's next token, which is the first
        anchor. One that was preempted has its anchor."""
        prompt = active.known
        start = active.num_cached
        is_chunked = self.target.spec.chunks_prompts
        end = min(start + self._chunk_size, len(prompt)) if is_chunked else len(prompt)
        chunk = torch.tensor(prompt[start:end], device=self.target.device)
        result = self.target.prefill(active.slot, chunk, len(prompt))
        self._rounds.take_prompt(active, chunk, result.taps)
        active.num_cached, active.chunked_at = end, time.perf_counter()
        if active.token_ids:
            active.state = "running" if end == len(prompt) else "prefilling"
            return []
        if end < len(prompt):
            return [PrefillProgress(active.request_id, end, len(prompt))]
        check_sound(result.logits)
        logits, rules = result.logits[0], active.rules
        active.anchor, _ = active.sampler.choose(
            logits if rules is None else rules.adjust_row(logits, ()), len(prompt)
        )
        logprobs = token_logprobs(active.request, result.logits, [active.anchor])
        active.decoding_since = time.perf_counter()
        active.state = "running"
        pieces = active.emit([(active.anchor, False, None)], logprobs)
        progress = PrefillProgress(active.request_id, end, len(prompt), pieces)
        return [progress, *self._finish_if_over(active)]

    # -- rounds -----------------------------------------------------------------------------------

    def _advance(self, running: Sequence[ActiveRequest], spent: float) -> Iterator[EngineEvent]:
        """One round; if it fails, one of each request alone, so that only what fails alone ends.
        The step has `spent` seconds on it so far."""
        began = time.perf_counter()
        try:
            outcomes = self._rounds.advance(running)
        except Exception as error:
            self._rounds.forget()
            is_shared = len(running) > 1 or is_of_the_machine(error)
            again = []
            for active in running:
                if is_shared and self._is_between_rounds(active):
                    again.append(active)
                else:
                    yield from self._fail(active, error)
            if is_of_the_machine(error):
                raise
            for active in again:
                yield from self._advance([active], 0.0)
            return
        told = [round_event(outcome) for outcome in outcomes]
        self._rounds.observer.tell(spent + time.perf_counter() - began)
        for event, outcome in zip(told, outcomes, strict=True):
            yield event
            yield from self._finish_if_over(outcome.active)

    def _is_between_rounds(self, active: ActiveRequest) -> bool:
        """Whether its cache ends before the anchor; if not, the round cannot be repeated."""
        known = len(active.request.prompt_ids) + len(active.token_ids)
        return self.target.length(active.slot) == known - 1


def default_chunk(device: torch.device, dtype: torch.dtype) -> int:
    """Tokens of a prompt in one pass. In float32 a GPU's attention is not the fast one, and would
    hold much."""
    is_fast = device.type == "cuda" and dtype != torch.float32
    return (
        GPU_PREFILL_CHUNK if is_fast and choose_backend(device).name == "triton" else PREFILL_CHUNK
    )
