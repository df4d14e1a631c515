"""Settings of a benchmark, the same for plain decoding and DSpark."""

from dataclasses import dataclass

from dspark.config import SamplingConfig, StopConfig

PLAIN = "plain"  # the arm without drafts
ARMS = (PLAIN, "dspark")
RACE_TOKENS = 256  # of a race whose end nobody has chosen
SCHEDULERS = ("scheduler", "async scheduler")  # arms of a concurrency bench


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """Both arms decode `warmup_tokens` first, so that figures exclude one-time costs."""

    trials: int = 3
    max_tokens: int = 128
    warmup_tokens: int = 8
    sampling: SamplingConfig = SamplingConfig()

    @property
    def stop(self) -> StopConfig:
        return StopConfig(max_tokens=self.max_tokens)
