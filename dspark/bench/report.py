"""The results of a benchmark, as frozen values."""

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity, measured once per trial."""

    trials: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.trials)

    @property
    def low(self) -> float:
        return min(self.trials)

    @property
    def high(self) -> float:
        return max(self.trials)

    def paired_ratio(self, other: "Figure") -> "Figure":
        """This over the other, trial by trial."""
        return Figure(
            tuple(a / b if b else 0.0 for a, b in zip(self.trials, other.trials, strict=True))
        )


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """Tokens per second."""

    decode: Figure
    end_to_end: Figure


@dataclass(frozen=True, slots=True)
class PositionAcceptance:
    """Counts over all rounds for one position in the block, counted from 1.

    `verified` rounds checked a draft there; in `reached` of them all drafts before it were
    accepted; in `accepted` it was accepted too.
    """

    position: int
    verified: int
    reached: int
    accepted: int

    @property
    def rate(self) -> float:
        return self.accepted / self.verified if self.verified else 0.0

    @property
    def conditional_rate(self) -> float:
        return self.accepted / self.reached if self.reached else 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token at which DSpark differs from plain decoding; None is the end of an answer.

    `logit_gap` is the target's logit of plain's token minus that of the other.
    """

    prompt: int
    position: int
    plain_token: int | None
    dspark_token: int | None
    logit_gap: float | None


@dataclass(frozen=True, slots=True)
class CategoryFigures:
    category: str
    prompts: int
    speedup: float
    tau: float


@dataclass(frozen=True, slots=True)
class BenchReport:
    """`is_identical` is None for output sampled without a seed.

    `parked` is the share of rounds in which nothing was drafted because it did not pay.
    `is_partial`: it was interrupted and covers the trials and prompts completed by then.
    """

    prompts: int
    plain: ArmFigures
    dspark: ArmFigures
    tau: float
    verified_per_round: float
    acceptance_by_position: tuple[PositionAcceptance, ...]
    categories: tuple[CategoryFigures, ...]
    is_identical: bool | None
    differing_prompts: int
    difference: Difference | None
    is_partial: bool = False
    parked: float = 0.0

    @property
    def trials(self) -> int:
        return len(self.plain.decode.trials)

    @property
    def speedup(self) -> Figure:
        return self.dspark.decode.paired_ratio(self.plain.decode)

    @property
    def end_to_end_speedup(self) -> Figure:
        return self.dspark.end_to_end.paired_ratio(self.plain.end_to_end)
