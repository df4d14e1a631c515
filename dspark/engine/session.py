"""A loaded pair: files → target, drafter, scheduler and engine."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, Unpack

import torch

from dspark.checkpoints.head_config import AnyHeadConfig
from dspark.checkpoints.heads import open_head, read_any_config
from dspark.checkpoints.model_folder import Folder, ModelFolder
from dspark.config import (
    DraftWeights,
    Effort,
    EngineConfig,
    Headless,
    RuntimeConfig,
    SamplingConfig,
    ScheduleConfig,
    StopConfig,
)
from dspark.drafters.base import Drafter
from dspark.drafters.head_drafter import TargetTables
from dspark.drafters.kinds import HEADLESS_DRAFTERS, kind_of, load_head
from dspark.drafters.select_taps import with_own_taps
from dspark.engine.current_device import on_device
from dspark.engine.loop import Engine
from dspark.engine.request import Request
from dspark.engine.runtime import ResolvedRuntime, resolve_runtime
from dspark.engine.sampling_defaults import sampling_defaults
from dspark.engine.scheduled_engine import scheduled_engine, sps_path
from dspark.engine.text_request import (
    Prompt,
    TextOptions,
    answer_texts,
    encode_prompt,
    text_request,
)
from dspark.errors import InputError
from dspark.events import Event, Failed, LoadProgress
from dspark.hub import PairFiles, home
from dspark.hub.footprint import of_folders
from dspark.hub.memory_fit import check_loadable
from dspark.targets.base import DeviceTarget, Target
from dspark.targets.deepseek_v4_native import DeepseekV4Target
from dspark.targets.load import load_target
from dspark.targets.moe import MoeTarget
from dspark.targets.stored import StoredTarget, build_kernels
from dspark.text.grammar import Vocabulary
from dspark.text.stream import TextCodec
from dspark.text.tool_format import ToolFormat
from dspark_kernels.cpu.runtime import keep_compiled

STAGES = ("reading the model", "reading the head", "measuring this machine", "ready")


class Session:
    """One pair with its engine. Not for several threads at once, except `cancel`."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        codec: TextCodec | None,
        runtime: ResolvedRuntime,
        sampling_defaults: SamplingConfig = SamplingConfig(),
    ) -> None:
        """`sampling_defaults` are the model's own recommended settings."""
        self.name = name
        self.engine = engine
        self.tokenizer = codec
        self.runtime = runtime
        self.sampling_defaults = sampling_defaults
        self._running: int | None = None

    @property
    def context_limit(self) -> int:
        return self.engine.target.spec.context_limit

    @property
    def has_drafter(self) -> bool:
        return self.engine.drafter is not None

    def encode_prompt(
        self, prompt: Prompt, *, is_raw: bool = False, effort: Effort | None = None
    ) -> list[int]:
        """Text through the chat template, if there is one and not `is_raw`; or chat messages."""
        return encode_prompt(self._codec(), prompt, is_raw=is_raw, effort=effort)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        thinking: bool | None = None,
        effort: Effort | None = None,
    ) -> list[int]:
        """Prompt ids of a conversation, up to the assistant's turn; `tools` as JSON schemas;
        `thinking` turns a template's switch on or off, `effort` says how much to think."""
        codec = self._codec()
        return codec.encode_chat(messages, tools, thinking=thinking, effort=effort)

    @property
    def has_effort(self) -> bool:
        """Whether the model's chat template has levels of effort."""
        return self.tokenizer is not None and self.tokenizer.has_effort

    @property
    def tool_format(self) -> ToolFormat:
        """How the model calls tools. Raises InputError if it cannot."""
        return self._codec().tool_format

    def encode_begun(self, messages: Sequence[Mapping[str, Any]], opening: str) -> list[int]:
        """Prompt ids of a conversation and the beginning of an answer that is to be continued."""
        return self._codec().encode_begun(messages, opening)

    def encode(self, text: str) -> list[int]:
        return self._codec().encode(text)

    def grammars(self) -> Vocabulary:
        """Grammars for this model's answers. Raises InputError without the library for them."""
        engine = self.engine
        return self._codec().grammars(engine.target.spec.vocab_size, engine.stop_token_ids)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text, or a special token's name."""
        return self._codec().texts.bytes_of(token_id)

    def decode(self, ids: Sequence[int]) -> str:
        return self._codec().decode(ids)

    def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingConfig = SamplingConfig(),
        stop: StopConfig = StopConfig(),
        *,
        plain: bool = False,
        is_raw: bool = False,
        tells_probs: bool = False,
    ) -> Iterator[Event]:
        """Events of one request, which is queued immediately. Closing the iterator early ends it,
        and so does the next call: one answer at a time. `tells_probs`: rounds tell the
        probabilities of drafts."""
        if stop.strings and self.tokenizer is None:
            raise InputError("stop strings need a tokenizer, and this model has none")
        ids = tuple(prompt_ids)
        return self._submit(Request(ids, sampling, stop, plain, is_raw, tells_probs=tells_probs))

    def _submit(self, request: Request) -> Iterator[Event]:
        if self._running is not None:
            self.engine.discard([self._running])
        self._running = self.engine.submit(request)
        return self._events(self._running)

    def _events(self, request_id: int) -> Iterator[Event]:
        try:
            while self.engine.holds(request_id):
                for event in self.engine.step():
                    if event.request_id != request_id:
                        continue
                    if isinstance(event, Failed):
                        raise event.error
                    yield event
        finally:
            if self._running == request_id:
                self._running = None
            self.engine.discard([request_id])

    def stream_events(self, prompt: Prompt, **options: Unpack[TextOptions]) -> Iterator[Event]:
        """The answer to a text or a chat, as its rounds and other events come. One at a time, as
        `generate`."""
        request = text_request(self._codec(), prompt, options)
        return self._submit(request)

    def stream_text(self, prompt: Prompt, **options: Unpack[TextOptions]) -> Iterator[str]:
        """The answer's text as it becomes final, without the model's thinking."""
        return answer_texts(self.stream_events(prompt, **options))

    def generate_text(self, prompt: Prompt, **options: Unpack[TextOptions]) -> str:
        """The whole answer."""
        return "".join(self.stream_text(prompt, **options))

    def cancel(self) -> None:
        """End the running answer at its next step. Safe from any thread."""
        running = self._running
        if running is not None:
            self.engine.cancel(running)

    @torch.inference_mode()
    def next_logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """The target's logits [V] after these tokens, from a fresh forward."""
        target = self.engine.target
        ids = torch.tensor(list(token_ids), device=target.device)
        slot = target.open()
        try:
            with on_device(target.device):
                return target.prefill(slot, ids).logits[0].float()
        finally:
            target.close(slot)

    def with_schedule(self, schedule: ScheduleConfig) -> "Session":
        """The same pair under another schedule; weights are shared."""
        old = self.engine
        config = replace(old.config, schedule=schedule)
        engine = scheduled_engine(
            self.name, old.target, old.drafter, self.tokenizer, config, self.runtime
        )
        return Session(self.name, engine, self.tokenizer, self.runtime, self.sampling_defaults)

    def with_head(
        self,
        name: str,
        source: Path | Headless,
        tap_layers: Sequence[int],
        config: EngineConfig | None = None,
    ) -> "Session":
        """The same target, which taps `tap_layers`, with another head, or a drafter without one;
        its weights are shared."""
        old = self.engine
        if isinstance(source, Path):
            weights = self.runtime.draft_weights
            drafter = with_own_taps(load_drafter(source, old.target, weights), tap_layers)
        else:
            drafter = HEADLESS_DRAFTERS[source]()
        config = config or old.config
        engine = scheduled_engine(name, old.target, drafter, self.tokenizer, config, self.runtime)
        return Session(name, engine, self.tokenizer, self.runtime, self.sampling_defaults)

    def forget_texts(self) -> None:
        """Release the caches of earlier answers: the next prompt is run whole."""
        self.engine.forget_texts()

    def sps_path(self) -> Path:
        """Where the schedule's table of this pair and machine is stored."""
        engine = self.engine
        assert engine.drafter is not None, "plain decoding has no table"
        return sps_path(self.name, engine.target, engine.drafter, self.runtime)

    def close(self) -> None:
        """Release the caches; the weights are freed with the session."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _codec(self) -> TextCodec:
        if self.tokenizer is None:
            raise InputError("this model has no tokenizer", "Give token ids instead of text.")
        return self.tokenizer


def open_session(
    files: PairFiles,
    runtime: RuntimeConfig = RuntimeConfig(),
    config: EngineConfig = EngineConfig(),
    *,
    tap_layers: tuple[int, ...] = (),
) -> Generator[LoadProgress, None, Session]:
    """Load a pair, telling how far it is.

    A target without a head taps `tap_layers`, for heads attached later.
    """
    resolved = resolve_runtime(runtime)
    device, dtype = torch.device(resolved.device), getattr(torch, resolved.dtype)
    folder = ModelFolder(files.target)
    head = None if files.draft is None else open_head(files.draft)
    if head is not None and head.path == folder.path:
        head = folder
    check_loadable(files.name, of_folders(folder, head), runtime)
    yield LoadProgress(STAGES[0], 0, len(STAGES) - 1)
    head_config = None
    if head is not None:
        head_config = read_any_config(head)
        tap_layers = head_config.target_layer_ids
    as_stored = runtime.dtype == "auto" and device.type == "cpu"
    if as_stored:
        keep_compiled(home() / "kernels")
        of_head = _head_kernels(head_config, runtime.draft_weights)
        yield from build_kernels(folder, of_head)
    target = load_target(
        folder,
        tap_layers=tap_layers,
        device=device,
        dtype=dtype,
        as_stored=as_stored,
        kv=runtime.kv,
    )
    if isinstance(target, (StoredTarget, DeepseekV4Target, MoeTarget)) and target.kinds:
        reason = "weights as the file stores them"
        store = None if isinstance(target, StoredTarget) else target.expert_store
        if store is not None and not store.is_locked:
            reason += "; the system may move experts that are kept nearby to the disk (ulimit -l)"
        resolved = replace(resolved, dtype=target.kinds[0], reason=reason)
    codec = TextCodec.from_directory(folder)
    yield LoadProgress(STAGES[1], 1, len(STAGES) - 1)
    drafter = HEADLESS_DRAFTERS[files.headless]() if files.headless else None
    if head is not None:
        drafter = load_drafter(head, target, runtime.draft_weights, head_config)
    yield LoadProgress(STAGES[2], 2, len(STAGES) - 1)
    engine = scheduled_engine(files.name, target, drafter, codec, config, resolved)
    yield from engine.warm_up()
    yield LoadProgress(STAGES[3], 3, len(STAGES) - 1)
    return Session(files.name, engine, codec, resolved, sampling_defaults(folder))


def _head_kernels(config: AnyHeadConfig | None, weights: DraftWeights) -> Sequence[str]:
    if config is None or weights == "bf16":
        return ()
    return kind_of(config).cpu_kernels(config)


def load_drafter(
    folder: Folder,
    target: Target,
    weights: DraftWeights = "auto",
    config: AnyHeadConfig | None = None,
) -> Drafter:
    """Load the head for its target. Raises PairMismatchError, CheckpointError."""
    spec, folder = target.spec, open_head(folder)
    config = config or read_any_config(folder)
    config.check_target(
        vocab_size=spec.vocab_size, hidden_size=spec.hidden_size, num_layers=spec.num_layers
    )
    cache = target.paged_cache() if isinstance(target, DeviceTarget) else None
    tables = TargetTables(
        target.embedding(),
        target.output_head(),
        target.device,
        target.dtype,
        is_paged=cache is not None,
        kv="auto" if cache is None else cache.kv,
        rounds=isinstance(target, DeepseekV4Target) and bool(target.kinds),
        expert_store=target.expert_store if isinstance(target, DeepseekV4Target) else None,
    )
    return load_head(folder, config, tables, weights)
