"""docs/models.md: the registry as a page. `dspark list --markdown` prints it."""

from collections.abc import Iterator, Mapping

from dspark.checkpoints.detect import EAGLE3, ELSEWHERE, GGUF, MTP, NEMOTRON, Packaging
from dspark.hub.fit import gigabytes, weights_needed
from dspark.hub.pairs import Algorithm, AssetFolder, HubRepo, Pair, WheelMember
from dspark.hub.registry import PAIRS
from dspark.hub.released import ALIASES, FAMILIES
from dspark.hub.target_families import targets_markdown

GOLDEN = "golden runs of the reference"
FIRST_BLOCKS = "first blocks of the reference"
TOY = "toy models, written and read back"
LAYOUT = "layout only"
VERIFIED = {
    Packaging.DEEPSPEC: GOLDEN,
    Packaging.SPECULATORS: TOY,
    Packaging.SPECFORGE: TOY,
    Packaging.LFM2: TOY,
    Packaging.DFLASH: TOY,
    Packaging.IN_TARGET: TOY,
}
# what the packaging does not tell: which of DeepSpec's heads of Gemma4's layers were compared
GEMMA4 = "gemma4_unified"
GEMMA4_VERIFIED: Mapping[Algorithm, str] = {"dflash": TOY, "eagle3": FIRST_BLOCKS}
HEADER = """\
# Known pairs
<!-- Written by `dspark list --markdown > docs/models.md`; a test compares. -->
None of the weights on the Hugging Face hub were at hand when this was written: *verified* says
what stands in for them. *Golden runs*: token for token the reference implementation's, on tiny
models. *First blocks*: the reference's drafts and logits after a prompt, on a tiny model. *Toy
models*: an independent writer's, read back and decoded. *Needs* is the memory of target and head in
bfloat16, without the cache of a chat and without a head whose size is not established; of
DeepSeek-V4 as stored, which a GPU with FP8 keeps, while elsewhere it is 3.4 times as much.
`dspark show PAIR` tells where each figure is from.
"""


def verified(pair: Pair) -> str:
    if pair.head is None:
        return LAYOUT
    if pair.name == "demo":
        return "the pair itself, decoded"
    algorithm = pair.head.algorithm
    if pair.facts is not None and pair.facts.model_type == GEMMA4 and algorithm in GEMMA4_VERIFIED:
        return GEMMA4_VERIFIED[algorithm]
    return VERIFIED[pair.head.packaging]


def models_markdown() -> str:
    return "\n".join(
        (HEADER, *_pairs(), "", *_names(), "", *targets_markdown(), "", *_elsewhere(), "")
    )


def _pairs() -> Iterator[str]:
    yield "| pair | target | head | algorithm | packaging | verified | needs | licence |"
    yield "|---|---|---|---|---|---|---|---|"
    for pair in PAIRS.values():
        needed = weights_needed(pair)
        head = pair.head
        cells = (
            f"`{pair.name}`",
            _source(pair.target),
            _source(pair.draft),
            head.algorithm if head else "",
            head.packaging if head else "",
            verified(pair),
            gigabytes(needed) if needed else "not established",
            pair.licence or "not established",
        )
        yield f"| {' | '.join(cells)} |"


def _source(source: object) -> str:
    if isinstance(source, HubRepo):
        inside = f", `{source.tensor_prefix}*`" if source.tensor_prefix else ""
        return f"{source.repo_id}{inside}"
    if isinstance(source, WheelMember):
        return f"{source.package} {source.version} of the package index"
    return "shipped" if isinstance(source, AssetFolder) else ""


def _names() -> Iterator[str]:
    yield "## Other names"
    for alias, name in ALIASES.items():
        yield f"- `{alias}` is `{name}`."
    for family, names in FAMILIES.items():
        listed = ", ".join(f"`{name}`" for name in names)
        yield f"- `{family}` is the first of {listed} that fits this machine."


def _elsewhere() -> Iterator[str]:
    yield "## Heads that other engines run"
    yield "dspark refuses them by name:"
    for each in (*ELSEWHERE.values(), GGUF, NEMOTRON, EAGLE3, MTP):
        yield f"- {each.what}: {each.engines}"
    yield "- a head that slides a window over its context, as"
    yield "  RedHatAI/Qwen3.8-27B-speculator.dspark does: vLLM and SGLang run such heads."
