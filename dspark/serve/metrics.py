"""What a server counts, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dspark.events import EngineEvent, Failed, Finished, PrefillProgress, Round

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
LENGTHS = (1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 8, 12)
DRAFTS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16)


class Metrics:
    """`observe` takes the engine's events; `text` is what /metrics answers."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests that ended.", "reason")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self._new_tokens = self._counter("generated_tokens", "Tokens written.")
        self._rounds = self._counter("rounds", "Rounds of draft and verification.")
        self._drafted = self._counter("drafted_tokens", "Tokens drafted.")
        self._verified = self._counter("verified_tokens", "Drafted tokens that were verified.")
        self._accepted = self._counter("accepted_tokens", "Drafted tokens that were accepted.")
        self._parked_rounds = self._counter(
            "parked_rounds", "Rounds without drafts, because plain decoding was faster."
        )
        self._parked = Gauge(
            "dspark_parked",
            "1 if drafting is parked at present because plain decoding is faster.",
            registry=self._registry,
        )
        self._draft_cost = Gauge(
            "dspark_draft_cost",
            "While parked: time of a round with drafts, in plain rounds; 0 if not known.",
            registry=self._registry,
        )
        self._draft_tokens = Gauge(
            "dspark_draft_tokens",
            "While parked: tokens that a round with drafts gives a request; 0 if not known.",
            registry=self._registry,
        )
        self._verified_at = self._counter(
            "verified_at_position", "Verified drafts by their position.", "position"
        )
        self._accepted_at = self._counter(
            "accepted_at_position", "Accepted drafts by their position.", "position"
        )
        self._verified_of_round = self._histogram(
            "verified_drafts", "Drafts of one request that a round verified.", DRAFTS
        )
        self._accepted_length = self._histogram(
            "accepted_length", "Tokens a round (tau) of a request, rounds with drafts.", LENGTHS
        )
        self._reused = self._counter(
            "reused_prompt_tokens", "Tokens of prompts found in the caches of earlier requests."
        )
        self._hits = self._counter("prefix_cache_hits", "Requests that found any of their prompt.")
        self._preemptions = self._counter("preemptions", "Requests that made way for others.")
        self._held = Gauge(
            "dspark_requests_held", "Requests running or queued.", registry=self._registry
        )
        self._waiting = Gauge(
            "dspark_requests_waiting",
            "Requests queued: new ones, and those that made way.",
            registry=self._registry,
        )
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From a request to its first token.", SECONDS
        )
        self._rate = self._histogram("tokens_per_second", "Decoding rate of a request.", RATES)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"dspark_{name}", help_text, labels, registry=self._registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"dspark_{name}", help_text, registry=self._registry, buckets=buckets)

    def observe(self, event: EngineEvent) -> None:
        if isinstance(event, Round):
            self._rounds.inc()
            self._parked_rounds.inc(event.is_parked)
            if event.is_parked or event.draft:
                self._parked.set(event.is_parked)
            if event.is_parked:
                self._draft_cost.set(event.draft_cost)
                self._draft_tokens.set(event.draft_tokens)
            self._new_tokens.inc(len(event.pieces))
            self._drafted.inc(len(event.draft))
            self._verified.inc(event.verified)
            self._verified_of_round.observe(event.verified)
            self._accepted.inc(event.accepted)
            for position in range(1, event.verified + 1):
                self._verified_at.labels(position).inc()
                self._accepted_at.labels(position).inc(position <= event.accepted)
        elif isinstance(event, PrefillProgress):
            self._new_tokens.inc(len(event.pieces))
        elif isinstance(event, Finished):
            self._requests.labels(event.reason).inc()
            self._prompt_tokens.inc(event.stats.prompt_tokens)
            self._reused.inc(event.stats.cached_tokens)
            self._hits.inc(event.stats.cached_tokens > 0)
            self._preemptions.inc(event.stats.preemptions)
            self._first_token.observe(event.stats.prefill_seconds)
            if event.stats.drafted:
                self._accepted_length.observe(event.stats.tau)
            if event.stats.decode_seconds > 0:
                self._rate.observe(event.stats.decode_tokens_per_second)
        elif isinstance(event, Failed):
            self._requests.labels("failed").inc()

    def text(self, num_requests: int, num_waiting: int) -> bytes:
        self._held.set(num_requests)
        self._waiting.set(num_waiting)
        return generate_latest(self._registry)
