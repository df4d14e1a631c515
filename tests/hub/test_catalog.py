"""pairs.toml: what it states becomes a pair; what is wrong in it is named in one line."""

import re
from pathlib import Path

import pytest

from dspark.checkpoints.detect import Packaging
from dspark.errors import CheckpointError
from dspark.hub.catalog.pairs import AssetFolder, HeadFacts, HubRepo, Pair, TargetFacts, WheelMember
from dspark.hub.catalog.read_catalog import read_catalog

SOUND = """
[targets.base]
source.repo_id = "owner/base"
licence = "MIT"
num_bytes = 2_000
facts.model_type = "qwen3"
facts.hidden_size = 64
facts.num_layers = 4
facts.vocab_size = 100
origins.num_bytes = "measured"

[targets.wheel]
source.package = "a"
source.version = "1"
source.filename = "a-1.whl"
source.num_bytes = 10
source.sha256 = "00"
source.member = "a.gguf"
source.member_num_bytes = 9
source.member_sha256 = "11"
num_bytes = 3_000
num_parameters = 1_500

[pairs.base]
description = "Words."
target = "base"
draft.repo_id = "owner/head"
draft.num_bytes = 30
head.algorithm = "dspark"
head.packaging = "DFlash"
head.taps = [1, 2]
origins.target = "its page"

[pairs."other:one"]
description = "Others."
target = "wheel"
draft.folder = "demo_head"
head.algorithm = "eagle3"
head.packaging = "DeepSpec"
origins.target = "an index"

[aliases]
"base:dspark" = "base"

[families]
both = ["base", "other:one"]
"""


def test_each_key_is_in_its_place() -> None:
    catalog = read_catalog(SOUND)
    assert [*catalog.pairs] == ["base", "other:one"]
    assert catalog.pairs["base"] == Pair(
        name="base",
        description="Words.",
        licence="MIT",
        target=HubRepo("owner/base", num_bytes=2000, licence="MIT"),
        draft=HubRepo("owner/head", num_bytes=30),
        num_parameters=None,
        target_num_bytes=2000,
        origins={
            "licence": "not established",
            "num_parameters": "not established",
            "target_num_bytes": "measured",
            "target": "its page",
        },
        facts=TargetFacts("qwen3", 64, 4, 100),
        head=HeadFacts("dspark", Packaging.DFLASH, taps=(1, 2)),
    )
    other = catalog.pairs["other:one"]
    assert other.target == WheelMember("a", "1", "a-1.whl", 10, "00", "a.gguf", 9, "11")
    assert other.draft == AssetFolder("demo_head") and other.facts is None
    assert (other.num_parameters, other.target_num_bytes, other.licence) == (1500, 3000, None)
    assert catalog.aliases == {"base:dspark": "base"}
    assert catalog.families == {"both": ("base", "other:one")}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("num_bytes = 2_000", "", "targets.base lacks num_bytes"),
        ("num_bytes = 2_000", 'num_bytes = "2"', "targets.base.num_bytes is '2', not a whole numb"),
        ("num_bytes = 2_000", "num_bytes = true", "targets.base.num_bytes is 'True', not a whole"),
        ("num_bytes = 2_000", "num_byte = 2", "targets.base.num_byte is not a known key"),
        ("facts.num_layers = 4", "", "targets.base.facts lacks num_layers"),
        (
            "facts.num_layers",
            "facts.depth = 1\nfacts.num_layers",
            "targets.base.facts.depth is not",
        ),
        ('source.repo_id = "owner/base"', "", "targets.base lacks source"),
        ('source.repo_id = "owner/base"', "source = 3", "targets.base.source is not a table"),
        ('source.sha256 = "00"', "", "targets.wheel.source lacks sha256"),
        (
            'target = "base"',
            'target = "bass"',
            "pairs.base.target names 'bass', which is not a tar",
        ),
        ('"DFlash"', '"DFlush"', "pairs.base.head.packaging is 'DFlush', not one of DeepSpec, "),
        ('"dspark"\nhead', '"dsprk"\nhead', "pairs.base.head.algorithm is 'dsprk', not one of dsp"),
        ("taps = [1, 2]", 'taps = [1, "2"]', "pairs.base.head.taps is '2', not a whole number"),
        ("taps = [1, 2]", "taps = 1", "pairs.base.head.taps is '1', not a list"),
        ('description = "Others."', "", "pairs.other:one lacks description"),
        (
            'origins.target = "an index"',
            "origins.target = 1",
            "pairs.other:one.origins.target is '1'",
        ),
        ('"base:dspark" = "base"', '"a" = "bass"', "aliases.a names 'bass', which is not a pair"),
        ('"base:dspark" = "base"', '"base" = "base"', "aliases.base is also the name of a pair"),
        ('both = ["base"', 'both = ["bass"', "families.both names 'bass', which is not a pair"),
        ("[families]", "[familes]", "familes is not a known key"),
        ("[aliases]", "[aliases", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_entry_and_key(before: str, after: str, told: str) -> None:
    assert before in SOUND
    with pytest.raises(CheckpointError, match=re.escape(told)) as caught:
        read_catalog(SOUND.replace(before, after))
    assert caught.value.message.startswith("pairs.toml")
    assert caught.value.hint and "\n" not in caught.value.message + caught.value.hint


def test_each_target_of_the_catalogue_is_used_and_stands_once() -> None:
    import tomllib

    from dspark.hub.catalog import find

    file = tomllib.loads(Path(find.__file__).with_name("pairs.toml").read_text("utf-8"))
    assert {pair["target"] for pair in file["pairs"].values()} == file["targets"].keys()
    sources = [str(target["source"]) for target in file["targets"].values()]
    assert len(sources) == len({*sources})
