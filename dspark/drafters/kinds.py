"""The kinds of heads, one entry each: what config it has, what runs it, what is trained of it; and
the drafters that need no head."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from dspark.checkpoints.deepseek_v4_config import DeepseekV4HeadConfig
from dspark.checkpoints.dflash2_config import DFlash2Config
from dspark.checkpoints.domino_config import DominoConfig
from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.checkpoints.eagle3_config import Eagle3Config
from dspark.checkpoints.head_config import AnyHeadConfig, HeadConfig
from dspark.checkpoints.model_folder import Folder
from dspark.config import DraftWeights, Headless
from dspark.drafters.base import Drafter
from dspark.drafters.deepseek_v4 import DeepseekV4Drafter
from dspark.drafters.deepseek_v4_native import NativeDeepseekV4Drafter
from dspark.drafters.dflash2 import DFlash2Drafter
from dspark.drafters.domino import DominoDrafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.drafters.eagle3_training_blocks import each_unrolled
from dspark.drafters.head_drafter import HeadDrafter, TargetTables
from dspark.drafters.lookup import LookupDrafter
from dspark.drafters.paged import PagedDSparkDrafter
from dspark.drafters.paged_dflash2 import PagedDFlash2Drafter
from dspark.drafters.paged_domino import PagedDominoDrafter
from dspark.drafters.stored import StoredDSparkDrafter, stored_kernels
from dspark.drafters.stored_domino import StoredDominoDrafter
from dspark.drafters.stored_products import (
    StoredDFlash2Drafter,
    StoredEagle3Drafter,
    stored_products,
)
from dspark.drafters.training_blocks import TrainingHidden, packed_hidden
from dspark.errors import InputError
from dspark.models.dflash2_head import DFlash2Head
from dspark.models.domino_head import DominoHead
from dspark.models.dspark_head import DSparkHead
from dspark.models.eagle3_head import Eagle3Head
from dspark.models.head_module import HeadModule


class HeadRunner(Protocol):
    """A class of drafters that run a kind of head; `takes_small_weights`: as int8 and fp8 too."""

    takes_small_weights: ClassVar[bool]

    @classmethod
    def supports(cls, config: Any, tables: TargetTables) -> bool: ...

    @classmethod
    def load(cls, folder: Folder, tables: TargetTables, weights: DraftWeights) -> Drafter: ...


@dataclass(frozen=True, slots=True)
class Training:
    """The module that is trained, and its hidden states of all blocks of some texts."""

    module: Callable[[Any], HeadModule]
    hidden: TrainingHidden


@dataclass(frozen=True, slots=True)
class HeadKind:
    """`fast` runs some heads on some targets only, the first that does is taken; `drafter` runs
    all. `joined` is a drafter made from tensors, which a probe changes; None: cannot be probed.
    `cpu_kernels` names the functions to compile beside a target in codes."""

    config: type[AnyHeadConfig]
    drafter: type[HeadRunner]
    fast: tuple[type[HeadRunner], ...] = ()
    joined: type[HeadDrafter] | None = None
    training: Training | None = None
    cpu_kernels: Callable[[Any], Sequence[str]] = lambda config: ()

    def runner(self, config: AnyHeadConfig, tables: TargetTables) -> type[HeadRunner]:
        return next((each for each in self.fast if each.supports(config, tables)), self.drafter)


KINDS = (
    HeadKind(
        DSparkConfig,
        DSparkDrafter,
        fast=(PagedDSparkDrafter, StoredDSparkDrafter),
        joined=DSparkDrafter,
        training=Training(DSparkHead, packed_hidden),
        cpu_kernels=stored_kernels,
    ),
    HeadKind(
        DFlash2Config,
        DFlash2Drafter,
        fast=(PagedDFlash2Drafter, StoredDFlash2Drafter),
        joined=DFlash2Drafter,
        training=Training(DFlash2Head, packed_hidden),
        cpu_kernels=stored_products,
    ),
    HeadKind(
        DominoConfig,
        DominoDrafter,
        fast=(PagedDominoDrafter, StoredDominoDrafter),
        joined=DominoDrafter,
        training=Training(DominoHead, packed_hidden),
        cpu_kernels=stored_kernels,
    ),
    HeadKind(
        Eagle3Config,
        Eagle3Drafter,
        fast=(StoredEagle3Drafter,),
        joined=Eagle3Drafter,
        training=Training(Eagle3Head, each_unrolled),
        cpu_kernels=stored_products,
    ),
    HeadKind(DeepseekV4HeadConfig, DeepseekV4Drafter, fast=(NativeDeepseekV4Drafter,)),
)


HEADLESS_DRAFTERS: Mapping[Headless, Callable[[], Drafter]] = {"lookup": LookupDrafter}


def kind_of(config: AnyHeadConfig) -> HeadKind:
    return next(kind for kind in KINDS if kind.config is type(config))


def load_head(
    folder: Folder, config: AnyHeadConfig, tables: TargetTables, weights: DraftWeights
) -> Drafter:
    """Read a head that belongs to this target, and join it to its tables."""
    runner = kind_of(config).runner(config, tables)
    if weights in ("int8", "fp8") and not runner.takes_small_weights:
        raise InputError(
            f"this head has no draft weights of {weights} beside this target",
            "Leave the draft weights at auto.",
        )
    return runner.load(folder, tables, weights)


def build_head(config: HeadConfig) -> HeadModule:
    """A head to train, its weights as torch begins them."""
    training = kind_of(config).training
    assert training is not None, "every head with files of its own can be trained"
    return training.module(config)


def trained_parameters(config: HeadConfig) -> int:
    """Those of the head's own; the embedding and the output head are the target's, frozen."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_head(config).parameters())
