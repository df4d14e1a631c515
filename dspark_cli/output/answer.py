"""The events of a decode as text, as a JSON object and as one line of figures."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

from dspark.chat.shared_wording import parked_words
from dspark.config import EngineConfig, SamplingConfig, StopConfig
from dspark.events import DecodeStats, Finished, Round
from dspark.plural import counted
from dspark.round_records import round_record

if TYPE_CHECKING:
    from dspark.engine.runtime import ResolvedRuntime
    from dspark.hub.catalog.pairs import PairFiles

DIM, RESET = "\x1b[2m", "\x1b[0m"


def answer_object(
    prompt_ids: Sequence[int], rounds: Sequence[Round], finished: Finished, has_text: bool
) -> dict[str, Any]:
    """The object that `dspark generate --json` prints."""
    return {
        "prompt_ids": list(prompt_ids),
        "token_ids": list(finished.token_ids),
        "text": finished.text if has_text else None,
        "thinking": finished.thinking if has_text else None,
        "rounds": [round_record(each) for each in rounds],
        "stats": {**stats_object(finished.stats), "finish_reason": finished.reason},
    }


def settings_object(
    files: "PairFiles",
    runtime: "ResolvedRuntime",
    sampling: SamplingConfig,
    stop: StopConfig,
    engine: EngineConfig,
) -> dict[str, Any]:
    """The settings that reproduce the answer, with the seed if it was sampled."""
    head = files.headless or (files.draft and str(files.draft))
    return {
        "pair": files.name,
        "target": str(files.target),
        "head": head,
        "device": runtime.device,
        "dtype": runtime.dtype,
        "sampling": asdict(sampling),
        "acceptance": sampling.acceptance,
        "stop": asdict(stop),
        "schedule": asdict(engine.schedule),
    }


def stats_object(stats: DecodeStats) -> dict[str, Any]:
    return {
        **asdict(stats),
        "tau": stats.tau,
        "verified_per_round": stats.verified_per_round,
        "decode_tokens_per_second": stats.decode_tokens_per_second,
        "total_tokens_per_second": stats.total_tokens_per_second,
    }


def stats_line(
    stats: DecodeStats, sampling: SamplingConfig | None = None, rate: float | None = None
) -> str:
    """With `sampling`, also states how the answer was drawn; `rate` is of decoding by default."""
    rate = stats.decode_tokens_per_second if rate is None else rate
    figures = [counted(stats.new_tokens, "token")]
    if rate:  # one token, or an answer in one piece, has no rate
        figures.append(f"{rate:.1f} tok/s")
    if stats.drafted and not stats.is_parked:
        figures += [f"τ {stats.tau:.2f}", f"{stats.verified_per_round:.1f} verified per round"]
    if stats.is_parked:
        figures.append(parked_words(stats))
    if sampling is not None and sampling.acceptance == "coupling":
        figures.append(f"seed {sampling.seed}")
    if sampling is not None and sampling.acceptance == "rejection":
        figures.append("sampled without a seed")
    return " · ".join(figures)


class ThinkingLine:
    """Streams thinking, dimmed; prints nothing if the stream is not a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_open = False

    def write(self, text: str) -> None:
        if text and self._stream.isatty():
            print(text if self._is_open else f"{DIM}{text}", end="", file=self._stream, flush=True)
            self._is_open = True

    def end(self) -> None:
        """To be called before the answer begins, or at the end."""
        if self._is_open:
            print(RESET, file=self._stream, flush=True)
            self._is_open = False
