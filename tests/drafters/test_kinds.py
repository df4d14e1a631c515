"""The registry is whole: whatever can be named, read or trained has its entry, and they agree."""

from typing import get_args

import pytest
import torch

from dspark.checkpoints.detect import BY_ARCHITECTURE, Packaging
from dspark.checkpoints.head_configs import (
    HEAD_CONFIGS,
    OWN_LAYOUT,
    config_trained_by,
    parse_config,
)
from dspark.config import ALGORITHMS, HEADLESS, Algorithm, Headless, graft_config
from dspark.drafters.kinds import (
    HEADLESS_DRAFTERS,
    KINDS,
    build_head,
    kind_of,
    trained_parameters,
)

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "target_layer_ids": (0, 2),
    "num_target_layers": 4,
}
TABLES = {"embed_tokens.weight", "lm_head.weight"}


def test_every_name_has_its_entry():
    assert [*ALGORITHMS] == [*get_args(Algorithm)]
    assert [*HEADLESS] == [*get_args(Headless)] == [*HEADLESS_DRAFTERS]
    assert {a for config in HEAD_CONFIGS for a in config.algorithms} == set(ALGORITHMS)
    assert len({kind.config for kind in KINDS}) == len(KINDS)


def test_architectures_belong_to_one_kind_and_are_recognised():
    names = [name for config in HEAD_CONFIGS for name in config.architectures.values()]
    assert len(set(names)) == len(names)
    for config in HEAD_CONFIGS:
        layout = Packaging.DFLASH if config in OWN_LAYOUT else Packaging.DEEPSPEC
        assert all(BY_ARCHITECTURE[name] is layout for name in config.architectures.values())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_an_algorithm_trains_is_read_run_and_probed_as_it(algorithm):
    settings = graft_config(algorithm)
    config = config_trained_by(algorithm).for_training(SIZES, settings, 39)
    assert config.algorithm == algorithm and config.block_size == settings.block_size
    assert parse_config(config.to_json()) == config
    kind = kind_of(config)
    assert kind.joined is not None and kind.training is not None
    assert (config.mask_token_id is not None) == config.has_mask


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_module_is_what_the_files_hold_beside_the_two_tables(algorithm):
    config = config_trained_by(algorithm).for_training(SIZES, graft_config(algorithm), 39)
    with torch.device("meta"):
        head = build_head(config)
    stored = config.expected_tensors()
    assert stored.keys() > TABLES
    assert {name: tuple(t.shape) for name, t in head.state_dict().items()} == {
        name: shape for name, shape in stored.items() if name not in TABLES
    }
    assert trained_parameters(config) == sum(p.numel() for p in head.parameters())
    norms = [head.feature_norm, head.norm]
    assert all(each.weight.shape == (config.hidden_size,) for each in norms if each is not None)
    assert len([*head.layers]) == config.num_layers
    if config.num_layers:
        assert head.fc is not None and None not in norms
