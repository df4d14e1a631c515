"""A training job, and the events that a training yields."""

from dataclasses import dataclass
from pathlib import Path

from dspark.bench.config import BenchConfig
from dspark.checkpoints.head_config import HeadConfig
from dspark.config import GraftConfig, RuntimeConfig
from dspark.graft.data.corpus import CorpusProgress
from dspark.graft.data.prompt_sources import PromptSource
from dspark.graft.judge.acceptance import Evaluation
from dspark.graft.judge.calibrate import Calibrated
from dspark.graft.judge.speedup import Speedup
from dspark.graft.train.trainer import StepReport
from dspark.hub.catalog.pairs import PairFiles


@dataclass(frozen=True, slots=True)
class GraftJob:
    """A training: settings, data and output folder.

    With `full_head` the base's embedding and output head are stored too. `measurement` is how the
    speed-up is measured, None for not at all; `released` is a head to compare with.
    """

    base: PairFiles
    source: PromptSource
    data: Path
    out: Path
    config: GraftConfig
    runtime: RuntimeConfig = RuntimeConfig()
    init_from: Path | None = None
    resume: bool = True
    tap_cache: Path | None = None
    full_head: bool = True
    measurement: BenchConfig | None = None
    released: Path | None = None
    licence: str = "unknown"
    command: str = "dspark graft"

    @property
    def state_path(self) -> Path:
        return self.out / "training" / "checkpoint.pt"

    @property
    def metrics_path(self) -> Path:
        return self.out / "training" / "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class Prepared:
    """The head and data about to be trained."""

    head: HeadConfig
    parameters: int
    answers: int
    held_out: int
    first_step: int


@dataclass(frozen=True, slots=True)
class Validated:
    """Figures on the held-out answers; this step's head is now on disk."""

    report: StepReport


@dataclass(frozen=True, slots=True)
class Regrafted:
    """The head that a training began with and the one it ended with, both decoding the same
    prompts beside this target."""

    before: Evaluation
    after: Evaluation


@dataclass(frozen=True, slots=True)
class Stopped:
    """Stopped early on request; the same command resumes from `step`."""

    step: int


GraftEvent = (
    CorpusProgress
    | Prepared
    | StepReport
    | Validated
    | Evaluation
    | Regrafted
    | Calibrated
    | Speedup
    | Stopped
)
