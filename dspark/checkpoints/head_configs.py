"""The kinds of heads that lie in files of their own, each by its config."""

from collections.abc import Mapping
from typing import Any

from dspark.checkpoints.config_values import architecture_of
from dspark.checkpoints.dflash2_config import DFlash2Config
from dspark.checkpoints.domino_config import DominoConfig
from dspark.checkpoints.dspark_config import DSparkConfig
from dspark.checkpoints.eagle3_config import Eagle3Config
from dspark.checkpoints.head_config import HeadConfig
from dspark.config import Algorithm

HEAD_CONFIGS: tuple[type[HeadConfig], ...] = (
    DSparkConfig,
    Eagle3Config,
    DFlash2Config,
    DominoConfig,
)
OWN_LAYOUT = (DFlash2Config, DominoConfig)  # kinds that DeepSpec's layout does not have
DEEPSPEC_ARCHITECTURES = [
    name
    for config in HEAD_CONFIGS
    if config not in OWN_LAYOUT
    for name in config.architectures.values()
]


def parse_config(raw: Mapping[str, Any]) -> HeadConfig:
    """Of a config.json that dspark writes. Raises CheckpointError for any other."""
    name = architecture_of(raw)
    found = (config for config in HEAD_CONFIGS if name in config.architectures.values())
    return next(found, DSparkConfig).from_json(raw)


def config_trained_by(algorithm: Algorithm) -> type[HeadConfig]:
    return next(config for config in HEAD_CONFIGS if algorithm in config.algorithms)
