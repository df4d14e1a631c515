"""One engine that answers token ids with token ids, timed alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dspark.bench.config import ARMS, PLAIN
from dspark.config import SamplingConfig, StopConfig
from dspark.events import Finished

if TYPE_CHECKING:
    from dspark.engine.session import Session


@dataclass(frozen=True, slots=True)
class Answer:
    """New tokens, the time to the first of them, and the time from there to the last."""

    token_ids: tuple[int, ...]
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class PeerArm:
    """`answer` takes a prompt's ids and the most new tokens. `plain` names the arm without drafts
    of the same engine, which is this one itself if it does not draft."""

    name: str
    answer: Callable[[Sequence[int], int], Answer]
    plain: str

    @property
    def drafts(self) -> bool:
        return self.name != self.plain


def our_arms(session: "Session") -> list[PeerArm]:
    """Greedy, without drafts, and with a drafter where there is one."""
    arms = [PeerArm(PLAIN, _ours(session, plain=True), PLAIN)]
    if session.has_drafter:
        arms.append(PeerArm(ARMS[1], _ours(session, plain=False), PLAIN))
    return arms


def _ours(session: "Session", *, plain: bool) -> Callable[[Sequence[int], int], Answer]:
    def answer(prompt_ids: Sequence[int], max_tokens: int) -> Answer:
        stop = StopConfig(max_tokens=max_tokens)
        session.forget_texts()
        for event in session.generate(prompt_ids, SamplingConfig(), stop, plain=plain):
            if isinstance(event, Finished):
                stats = event.stats
                return Answer(event.token_ids, stats.prefill_seconds, stats.decode_seconds)
        raise AssertionError("a decode ends with Finished")

    return answer
