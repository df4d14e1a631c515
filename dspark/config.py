"""Frozen settings. Every default is written here, once; the command line reads it from here."""

from dataclasses import dataclass
from typing import Literal

Schedule = Literal["auto", "full", "threshold"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Where and in which number format a pair runs. "auto": CUDA in bf16, otherwise CPU in float32."""

    device: str = "auto"
    dtype: Dtype = "auto"


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How one token is chosen. temperature 0 is greedy; top_k 0 and top_p 1 keep every token."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class StopConfig:
    """When a request ends, beside the end of the context."""

    max_tokens: int = 512
    strings: tuple[str, ...] = ()
    ignore_stop_tokens: bool = False


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """How much of a block is verified: SPS scheduler, all of it, or up to a confidence below threshold."""

    mode: Schedule = "auto"
    threshold: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes of the engine."""

    prefill_chunk: int = 256
    max_requests: int = 64
    schedule: ScheduleConfig = ScheduleConfig()
