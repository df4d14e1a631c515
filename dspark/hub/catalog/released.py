"""The pairs released with DSpark, DFlash or Eagle3 heads, with the source of each fact."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dspark.checkpoints.detect import Packaging
from dspark.config import ALGORITHMS, Algorithm
from dspark.hub.catalog.community import COMMUNITY
from dspark.hub.catalog.pairs import (
    HeadFacts,
    HubRepo,
    Pair,
    TargetFacts,
)

SHAPES = "computed from the tensors' shapes, stored as bfloat16"
DEEPSPEC = "DeepSpec's README and code; the heads' repositories state no licence"


@dataclass(frozen=True, slots=True)
class Base:
    """A target for which DeepSpec released its three heads."""

    name: str
    title: str
    repo_id: str
    facts: TargetFacts
    num_parameters: int | None
    num_bytes: int
    bytes_origin: str
    heads: str  # the target's name in the heads' repositories
    taps: tuple[int, ...]
    mask_token_id: int
    head_parameters: Mapping[Algorithm, int]


BASES = (
    Base(
        "qwen3-4b",
        "Qwen3-4B",
        "Qwen/Qwen3-4B",
        TargetFacts("qwen3", 2560, 36, 151_936, 1024),
        4_022_468_096,
        8_044_936_192,
        SHAPES,
        "qwen3_4b",
        (1, 9, 17, 25, 33),
        151_669,
        {"dspark": 1_393_133_569, "dflash": 1_315_339_520, "eagle3": 927_344_896},
    ),
    Base(
        "qwen3-8b",
        "Qwen3-8B",
        "Qwen/Qwen3-8B",
        TargetFacts("qwen3", 4096, 36, 151_936, 1024),
        8_190_735_360,
        16_381_470_720,
        SHAPES,
        "qwen3_8b",
        (1, 9, 17, 25, 33),
        151_669,
        {"dspark": 2_371_081_729, "dflash": 2_293_286_144, "eagle3": 1_546_666_240},
    ),
    Base(
        "qwen3-14b",
        "Qwen3-14B",
        "Qwen/Qwen3-14B",
        TargetFacts("qwen3", 5120, 40, 151_936, 1024),
        14_768_307_200,
        29_536_614_400,
        SHAPES,
        "qwen3_14b",
        (1, 10, 19, 28, 37),
        151_669,
        {"dspark": 3_416_263_169, "dflash": 3_338_466_560, "eagle3": 2_053_918_976},
    ),
    Base(
        "gemma4-12b",
        "Gemma 4 12B",
        "google/gemma-4-12B-it",
        TargetFacts("gemma4_unified", 3840, 48, 262_144),
        None,
        24_000_000_000,
        "about 12 billion parameters in bfloat16, by the model's name",
        "gemma4_12b",
        (5, 17, 29, 41, 46),
        4,
        {"dspark": 3_430_444_550, "dflash": 3_296_222_725, "eagle3": 2_362_269_185},
    ),
)


def _pairs_of(base: Base) -> Iterator[Pair]:
    """DSpark under the plain name, the others after a colon."""
    endings: tuple[tuple[Algorithm, str], ...] = (
        ("dspark", "block7"),
        ("dflash", "block7"),
        ("eagle3", "ttt7"),
    )
    for algorithm, ending in endings:
        parameters = base.head_parameters.get(algorithm)
        yield Pair(
            name=base.name if algorithm == "dspark" else f"{base.name}:{algorithm}",
            description=f"{base.title} with DeepSpec's {ALGORITHMS[algorithm].title} head.",
            licence="Apache-2.0",
            target=HubRepo(base.repo_id, num_bytes=base.num_bytes, licence="Apache-2.0"),
            draft=HubRepo(
                f"deepseek-ai/{algorithm}_{base.heads}_{ending}",
                num_bytes=None if parameters is None else 2 * parameters,
            ),
            num_parameters=base.num_parameters,
            target_num_bytes=base.num_bytes,
            origins={
                "licence": "the target's model card",
                "target": "DeepSpec's README",
                "draft": DEEPSPEC,
                "num_parameters": SHAPES if base.num_parameters else "not established",
                "target_num_bytes": base.bytes_origin,
                "head": f"DeepSpec's code; parameters {SHAPES if parameters else 'unknown'}",
            },
            facts=base.facts,
            head=HeadFacts(
                algorithm,
                Packaging.DEEPSPEC,
                block_size=7,
                taps=base.taps,
                mask_token_id=None if algorithm == "eagle3" else base.mask_token_id,
                num_parameters=parameters,
            ),
        )


FLASH = TargetFacts("deepseek_v4", 4096, 43, 129_280)
PRO = TargetFacts("deepseek_v4", 7168, 61, 129_280)
FLASH_HEAD = HeadFacts("dspark", Packaging.IN_TARGET, 5, (40, 41, 42), 128_799, 19_845_850_215)
PRO_HEAD = HeadFacts("dspark", Packaging.IN_TARGET, 5, (58, 59, 60), 128_799)


def _deepseek(
    name: str,
    repo_id: str,
    facts: TargetFacts,
    head: HeadFacts,
    num_bytes: int,
    num_parameters: int,
    origin: str,
) -> Pair:
    """The head is in the target's own shards, as `mtp.*`."""
    repo = HubRepo(repo_id, num_bytes=num_bytes, licence="MIT")
    return Pair(
        name=name,
        description=f"{repo_id.partition('/')[2]}, whose checkpoint holds its own DSpark head.",
        licence="MIT",
        target=repo,
        draft=HubRepo(repo_id, licence="MIT", tensor_prefix="mtp."),
        num_parameters=num_parameters,
        target_num_bytes=num_bytes,
        origins={
            "licence": "the repository's model card",
            "target": "the hub's organisation deepseek-ai",
            "target_num_bytes": origin,
            "num_parameters": "the model's name for its size, rounded",
            "head": "the checkpoint's config and the public readings of its index",
        },
        facts=facts,
        head=head,
    )


RECIPES = "rounded, from vLLM's recipes; the exact size is not established"
DEEPSEEK = (
    _deepseek(
        "deepseek-v4-flash",
        "deepseek-ai/DeepSeek-V4-Flash-0731",
        FLASH,
        FLASH_HEAD,
        166_878_536_440,
        284_000_000_000,
        "public reading of the index of revision 7872f01b",
    ),
    _deepseek(
        "deepseek-v4-flash-preview",
        "deepseek-ai/DeepSeek-V4-Flash-DSpark",
        FLASH,
        FLASH_HEAD,
        167_000_000_000,
        284_000_000_000,
        RECIPES,
    ),
    _deepseek(
        "deepseek-v4-pro",
        "deepseek-ai/DeepSeek-V4-Pro-0813",
        PRO,
        PRO_HEAD,
        893_000_000_000,
        1_600_000_000_000,
        RECIPES,
    ),
    _deepseek(
        "deepseek-v4-pro-preview",
        "deepseek-ai/DeepSeek-V4-Pro-DSpark",
        PRO,
        PRO_HEAD,
        893_000_000_000,
        1_600_000_000_000,
        RECIPES,
    ),
)

RELEASED: tuple[Pair, ...] = (
    *(pair for base in BASES for pair in _pairs_of(base)),
    *DEEPSEEK,
    *COMMUNITY,
)

ALIASES: Mapping[str, str] = {
    **{f"{base.name}:dspark": base.name for base in BASES},
    "deepseek-v4-flash-0731": "deepseek-v4-flash",
    "deepseek-v4-pro-0813": "deepseek-v4-pro",
    "qwen3.8-27b:specforge": "qwen3.8-27b",
}

# the best first
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "qwen": ("qwen3-14b", "qwen3-8b", "qwen3-4b"),
    "gemma": ("gemma4-12b",),
    "deepseek": ("deepseek-v4-pro", "deepseek-v4-flash"),
}
