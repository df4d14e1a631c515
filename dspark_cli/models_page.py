"""docs/models.md: the registry as a page. `dspark list --markdown` prints it."""

from collections.abc import Iterator, Mapping

from dspark.checkpoints.detect import EAGLE3, ELSEWHERE, GGUF, MTP, NEMOTRON, Packaging
from dspark.checkpoints.target_architectures import targets_markdown
from dspark.config import Algorithm
from dspark.hub.catalog.find import ALIASES, FAMILIES, PAIRS
from dspark.hub.catalog.pairs import (
    AssetFolder,
    HubRepo,
    Pair,
    WheelMember,
)
from dspark.hub.footprint import Footprint, of_pair
from dspark.hub.memory_needed import Room, memory_needed
from dspark.machine import gigabytes

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
# how DeepSpec's heads for Gemma 4 were verified, which the packaging does not say
GEMMA4 = "gemma4_unified"
GEMMA4_VERIFIED: Mapping[Algorithm, str] = {"dflash": TOY, "eagle3": FIRST_BLOCKS}
HEADER = """\
# Known pairs
<!-- Written by `dspark list --markdown > docs/models.md`; a test compares. -->
The weights on the Hugging Face hub were not available when this was written: *verified* names the
substitute that was tested. *Golden runs*: equal to the reference implementation, token for token,
on tiny models. *First blocks*: equal to the reference's drafts and logits after a prompt, on a tiny
model. *Toy models*: files by an independent writer, read back and decoded. *Needs* is the total
memory of a chat of 4,096 tokens on a CPU, in float32 (the default) and in bfloat16 (`--dtype
bfloat16`); for DeepSeek-V4, on GPUs that keep FP8, as stored on a CPU, and with FP8 unpacked. It
leaves out heads of unknown size. On a CPU DeepSeek-V4 runs from the released files, in FP8 and FP4;
routed experts that memory does not hold are read from the SSD, slowly (`dspark pull PAIR --force`).
`dspark pull PAIR --what-if gpu=24,ram=256` estimates its speed on another machine. `dspark list`
shows how much each pair needs on your machine, `dspark show PAIR` the source of each figure.
"""
FOOTER = """\
Not supported either: DFlash 2 heads in GGUF, which llama.cpp runs, and DSpine heads (arXiv
2609.36173), of which no description was found that says enough to write one from it.
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
        (HEADER, *_pairs(), "", *_names(), "", *targets_markdown(), "", *_elsewhere(), "", FOOTER)
    )


def _pairs() -> Iterator[str]:
    yield "| pair | target | head | algorithm | packaging | verified | needs | licence |"
    yield "|---|---|---|---|---|---|---|---|"
    for pair in PAIRS.values():
        of = of_pair(pair)
        head = pair.head
        cells = (
            f"`{pair.name}`",
            _source(pair.target),
            _source(pair.draft),
            head.algorithm if head else "",
            head.packaging if head else "",
            verified(pair),
            "not established" if of is None else ", ".join(_needs(of)),
            pair.licence or "not established",
        )
        yield f"| {' | '.join(cells)} |"


def _needs(of: Footprint) -> Iterator[str]:
    """As `dspark list` prints it on a CPU, and in bfloat16; FP8 also on a GPU that keeps it."""
    if of.stored_bytes is not None:
        yield f"{_on(of, 'cuda', 2)} with FP8"
        yield f"{_on(of, 'cpu', 4)} on a CPU"
        yield f"{_on(of, 'cpu', 2)} else"
        return
    yield _on(of, "cpu", 4)
    yield f"{_on(of, 'cpu', 2)} in bf16"


def _on(of: Footprint, device: str, value_bytes: int) -> str:
    return gigabytes(memory_needed(of, Room(device, 0, value_bytes, device == "cuda")))


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
    yield "- a DSpark or DFlash head that slides a window over its context, as"
    yield "  RedHatAI/Qwen3.8-27B-speculator.dspark does: vLLM and SGLang run such heads."
