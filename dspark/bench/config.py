"""What is measured. Plain decoding and DSpark run with the same of everything."""

from dataclasses import dataclass

from dspark.config import SamplingConfig, StopConfig


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """`warmup_tokens` are decoded by both arms first, so that one-time costs are in no figure."""

    trials: int = 3
    max_tokens: int = 128
    warmup_tokens: int = 8
    sampling: SamplingConfig = SamplingConfig()

    @property
    def stop(self) -> StopConfig:
        return StopConfig(max_tokens=self.max_tokens)
