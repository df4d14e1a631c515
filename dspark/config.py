"""Frozen settings. Every default is written here, once; the command line reads it from here."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Schedule = Literal["auto", "async", "full", "threshold"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Precision = Literal["auto", "float32", "bfloat16"]
DraftWeights = Literal["auto", "bf16", "int8", "fp8"]
KVFormat = Literal["auto", "int8", "fp8"]
Acceptance = Literal["greedy", "rejection", "coupling"]
Algorithm = Literal["dspark", "dflash", "dflash2", "domino", "eagle3", "mtp"]
Headless = Literal["lookup"]
Effort = Literal["low", "medium", "high", "max"]  # how much to think; a model has some of them
DEFAULT_PAIR = "demo"
PREFILL_CHUNK = 256  # tokens of a prompt in one pass
EXPERTS_PREFILL_CHUNK = 512  # where a pass reads nearly all routed experts: for more rows each
GPU_PREFILL_CHUNK = 2048  # shorter passes leave a GPU waiting for its host
MAX_TOKENS = 512  # new ones in an answer
MOST_KEPT = 64  # finished requests whose caches are kept
PREFIX_CACHE_BYTES = 2**30  # of them, where memory is taken as it is needed
LEAST_TEMPERATURE = 1e-20  # below it sampling is greedy: logits divided by less would overflow


@dataclass(frozen=True, slots=True)
class PairChoice:
    """A pair by name; paths or hub ids may replace its target and head."""

    pair: str
    target: str | None = None
    draft: str | None = None


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Where and in which number format a pair runs. "auto": CUDA in bf16, else CPU in float32.

    draft_weights is the head's format if the device drives the rounds. "auto": the pair's. kv is
    the format of keys and values on a GPU; codes of 8 bits change the output. "auto": numbers.
    """

    device: str = "auto"
    dtype: Dtype = "auto"
    draft_weights: DraftWeights = "auto"
    kv: KVFormat = "auto"


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How one token is chosen. temperature 0 is greedy; top_k 0 and top_p 1 keep every token.

    With a seed the answer is a function of model, prompt and these settings, whatever drafts;
    without one, every answer is a new sample.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if 0 < self.temperature < LEAST_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)

    @property
    def acceptance(self) -> Acceptance:
        """The rule by which drafts are accepted."""
        if self.temperature == 0:
            return "greedy"
        return "rejection" if self.seed is None else "coupling"


@dataclass(frozen=True, slots=True)
class SamplingChoice:
    """The fields of a SamplingConfig that a user chose; None leaves them to the model."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def over(self, defaults: SamplingConfig) -> SamplingConfig:
        overrides = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(defaults, **overrides)


@dataclass(frozen=True, slots=True)
class LogitsConfig:
    """Changes of the logits before a token is chosen: (token id, number added) pairs, and penalties
    for tokens that the answer (repetition: the prompt too) already has."""

    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def has_penalties(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)


@dataclass(frozen=True, slots=True)
class StopConfig:
    """When a request ends, besides the end of the context. max_tokens None means no limit."""

    max_tokens: int | None = MAX_TOKENS
    strings: tuple[str, ...] = ()
    ignore_stop_tokens: bool = False


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """How much of a block to verify.

    auto: by SPS, and nothing is drafted where it does not pay; async: the same with a budget from
    two rounds ago; full: all, or `most_drafts`; threshold: up to a confidence below `threshold`.
    """

    mode: Schedule = "auto"
    threshold: float = 0.0
    most_drafts: int | None = None


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes of the engine; with `entropy`, requests without a seed sample the same in every run.

    prefix_cache_bytes bounds the caches that finished requests leave for prompts that begin alike;
    the last request's stay in any case, unless it is 0. None: PREFIX_CACHE_BYTES, or where memory
    is taken once, as on a GPU, what nobody else needs.
    prefill_chunk None: the target's own, PREFILL_CHUNK, or GPU_PREFILL_CHUNK where our kernels run.
    On a GPU the memory for keys and values holds max_requests at their longest, or cache_tokens of
    all of them, or cache_bytes, as far as they fit; on a CPU it grows up to that.
    """

    prefill_chunk: int | None = None
    max_requests: int = 64
    cache_tokens: int | None = None
    cache_bytes: int | None = None
    prefix_cache_bytes: int | None = None
    schedule: ScheduleConfig = ScheduleConfig()
    entropy: int | None = None


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """An OpenAI-compatible server, with the timeouts for connecting and for silence."""

    url: str
    model: str | None = None
    connect_seconds: float = 10.0
    silent_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Where dspark serves, and its limits. max_queue counts running and waiting requests;
    max_seconds ends an answer."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_body_bytes: int = 16 * 2**20
    max_queue: int = 256
    max_seconds: float = 3600.0


@dataclass(frozen=True, slots=True)
class WebConfig:
    """Where the chat's screen is served to browsers of this machine."""

    host: str = "127.0.0.1"
    port: int = 8001


@dataclass(frozen=True, slots=True)
class GraftConfig:
    """Training of a head. None means: derived from the target.

    loss_vocabulary 0 computes the loss over the whole vocabulary; N over the draft vocabulary, the
    batch's own tokens and N others, redrawn each step. The head then drafts from the draft
    vocabulary and a request's own tokens: the draft_vocabulary most frequent tokens of the data,
    0 for all tokens in it.

    accumulate is the number of parts in which a batch is computed, in sequence, each of them
    anchors_at_once anchors at a time, which bounds a step's memory; precision is the format of
    matrix products, the target's too, while weights, moments and losses stay float32; "auto" is
    bfloat16 where the processor has units for it.

    markov_learning_share is the Markov tables' learning rate as a fraction of learning_rate; the
    default is for tables that begin with the target's bigrams.
    average is the decay of the moving average of the weights that is judged and written, 0 for the
    last weights.

    nla_weight and lk_weight are of the losses -log a and λ · KL + (1 - λ) · (1 - a), λ = exp(-3 a),
    where a is the mass that both distributions share. position_weights "dpace" weighs a position by
    the drafts that it leads to, as likely as the head finds them, but at least dpace_floor.

    The loss weights, their decay along a block and the schedule are those of DeepSpec's recipe for
    DSpark; ALGORITHMS has the values of other algorithms.
    """

    algorithm: Algorithm = "dspark"
    steps: int = 1500
    batch_size: int = 8
    accumulate: int = 1
    anchors: int = 64
    anchors_at_once: int = 512
    length: int = 512
    learning_rate: float = 6e-4
    betas: tuple[float, float] = (0.9, 0.95)
    markov_learning_share: float = 0.1
    optimizer: Literal["adamw", "muon"] = "adamw"
    average: float = 0.0
    weight_decay: float = 0.0
    warmup: float = 0.04
    grad_clip: float = 1.0
    cross_entropy_weight: float = 0.1
    l1_weight: float = 0.9
    confidence_weight: float = 1.0
    distillation_weight: float = 0.0
    nla_weight: float = 0.0
    lk_weight: float = 0.0
    selector_weight: float = 1.0
    position_decay: float = 4.0
    position_weights: Literal["decay", "dpace"] = "decay"
    dpace_floor: float = 0.5
    block_size: int = 5
    num_layers: int = 1
    intermediate_size: int | None = None
    num_kv_heads: int | None = None
    taps: tuple[int, ...] | None = None
    mask_token_id: int | None = None
    markov_type: Literal["none", "vanilla", "gated", "rnn"] = "vanilla"
    markov_rank: int = 64
    has_confidence: bool = True
    init: Literal["target", "random"] = "target"
    seed: int = 0
    precision: Precision = "auto"
    chunk_rows: int = 128
    loss_vocabulary: int = 0
    draft_vocabulary: int = 0
    tap_memory_gib: float = 4.0
    checkpoint_every: int = 100
    max_answer_tokens: int = 256
    answer_temperature: float = 0.7
    answers_at_once: int = 64
    eval_prompts: int = 32


@dataclass(frozen=True, slots=True)
class AlgorithmFacts:
    """An algorithm's name in text, how it drafts in a few words, and the defaults for training
    that differ from DSpark's."""

    title: str
    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)


# EAGLE-3 (Li et al. 2025) learns the target's distribution, weighting step k of a block by 0.8^k.
_UNROLLED = {
    "cross_entropy_weight": 0.0,
    "l1_weight": 0.0,
    "distillation_weight": 1.0,
    "position_decay": -1.0 / math.log(0.8),
    "markov_type": "none",
    "has_confidence": False,
}
_DFLASH = {
    "cross_entropy_weight": 1.0,
    "l1_weight": 0.0,
    "markov_learning_share": 1.0,
    "markov_type": "none",
    "has_confidence": False,
}
ALGORITHMS: Mapping[Algorithm, AlgorithmFacts] = {
    "dspark": AlgorithmFacts("DSpark", "a block at once, corrected token by token"),
    "dflash": AlgorithmFacts("DFlash", "a block at once, no sequential head", _DFLASH),
    "dflash2": AlgorithmFacts("DFlash 2", "a block at once, chosen among candidates", _DFLASH),
    "domino": AlgorithmFacts(
        "Domino", "a block at once, corrected by a GRU", {**_DFLASH, "position_decay": 7.0}
    ),
    "eagle3": AlgorithmFacts("Eagle3", "token after token, one layer", _UNROLLED),
    "mtp": AlgorithmFacts("MTP-1", "one token a round, one layer", {**_UNROLLED, "block_size": 1}),
}


# Drafters that need no head, and what people call them; --draft and --drafters take their names.
HEADLESS: Mapping[Headless, str] = {"lookup": "n-gram"}


def as_headless(draft: str | None) -> Headless | None:
    """The drafter without a head that goes by this name."""
    return next((name for name in HEADLESS if name == draft), None)


Loss = Literal["published", "nla", "lk"]
_BY_ACCEPTANCE = {"cross_entropy_weight": 0.1, "l1_weight": 0.0, "distillation_weight": 0.0}
# Losses shaped by acceptance (arXiv 2602.23881 and vLLM's speculators), with DSpark's share of CE.
LOSSES: Mapping[Loss, Mapping[str, float]] = {
    "published": {},
    "nla": {**_BY_ACCEPTANCE, "nla_weight": 0.9},
    "lk": {**_BY_ACCEPTANCE, "lk_weight": 0.9},
}


def graft_config(algorithm: Algorithm, loss: Loss | None = None, **settings: Any) -> GraftConfig:
    """The algorithm's defaults, overridden by the loss's and by the settings that are not None."""
    chosen = {name: value for name, value in settings.items() if value is not None}
    defaults = {**ALGORITHMS[algorithm].settings, **LOSSES[loss or "published"]}
    return GraftConfig(**{"algorithm": algorithm, **defaults, **chosen})
