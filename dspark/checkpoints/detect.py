"""The packaging of a folder. Heads are published in many layouts, and a wrong guess would not crash
but halve the acceptance, so layouts that are not established are refused by name."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from dspark.checkpoints.head_configs import DEEPSPEC_ARCHITECTURES
from dspark.checkpoints.model_folder import ModelFolder
from dspark.errors import CheckpointError


class Packaging(StrEnum):
    DEEPSPEC = "DeepSpec"
    SPECULATORS = "speculators"
    SPECFORGE = "SpecForge"
    LFM2 = "LFM2 DSpark"
    DFLASH = "DFlash"
    IN_TARGET = "DeepSeek-V4's own"


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A packaging that other engines run."""

    what: str
    engines: str


BY_ARCHITECTURE = {
    **dict.fromkeys(DEEPSPEC_ARCHITECTURES, Packaging.DEEPSPEC),
    "Lfm2DSparkDraftModel": Packaging.LFM2,
    "DSparkDraftModel": Packaging.SPECFORGE,
    "DFlashDraftModel": Packaging.DFLASH,
    "DFlash2DraftModel": Packaging.DFLASH,
    "DominoDraftModel": Packaging.DFLASH,
}
ELSEWHERE = {
    "K3DSparkModel": Elsewhere("a Kimi K3 DSpark head (MLA)", "vLLM, SGLang and ATOM run it."),
    "DSparkMiniMaxDraftModel": Elsewhere("a MiniMax DSpark head", "SGLang runs it."),
    "Qwen35DSparkModel": Elsewhere(
        "a Qwen3.5 DSpark head (gated attention)", "mlx-dspark runs it."
    ),
}
EAGLE3 = Elsewhere(
    "an Eagle3 head in another layout than DeepSpec's", "vLLM and SGLang run most of them."
)
GGUF = Elsewhere("a head in GGUF", "llama.cpp runs it.")
NEMOTRON = Elsewhere(
    "an NVIDIA Nemotron DSpark head (causal, attention sinks)", "vLLM 0.27.1 or newer runs it."
)
MTP = Elsewhere(
    "the MTP head that its target was trained with (in its own layout)", "vLLM runs it."
)
SUBFOLDER = "dspark"


def head_folder(directory: Path) -> ModelFolder:
    """The folder itself, or the subfolder of a target's repository that holds its head."""
    folder, sub = ModelFolder(directory), ModelFolder(directory / SUBFOLDER)
    if not sub.has("config.json"):
        return folder
    return folder if folder.has("config.json") and is_head(folder.config) else sub


def is_head(raw: Mapping[str, Any]) -> bool:
    architecture = _architecture(raw)
    return (
        architecture in BY_ARCHITECTURE
        or architecture in ELSEWHERE
        or "Eagle3" in architecture
        or ("speculators_model_type" in raw or "dflash_config" in raw)
    )


def is_deepspec(raw: Mapping[str, Any]) -> bool:
    """DeepSpec's own layout: flat and complete keys."""
    is_nested = not raw.keys().isdisjoint(("dflash_config", "transformer_layer_config"))
    return BY_ARCHITECTURE.get(_architecture(raw)) is Packaging.DEEPSPEC and not is_nested


def detect(directory: Path, raw: Mapping[str, Any], names: Collection[str]) -> Packaging:
    """From config.json and the names of the tensors. Raises CheckpointError for the others."""
    architecture = _architecture(raw)
    if "speculators_model_type" in raw or "transformer_layer_config" in raw:
        return Packaging.SPECULATORS
    if any("dspark" in key and key.endswith("block_size") for key in raw) or any(
        name.startswith("mtp.") and ".markov_head." in name for name in names
    ):
        return Packaging.IN_TARGET
    if architecture in ELSEWHERE:
        raise _refusal(ELSEWHERE[architecture], directory)
    nested = raw.get("dflash_config")
    if _has_sinks(raw, nested, names):
        raise _refusal(NEMOTRON, directory)
    if is_deepspec(raw):
        return Packaging.DEEPSPEC
    if packaging := BY_ARCHITECTURE.get(architecture):
        projector = nested.get("projector_type") if isinstance(nested, dict) else None
        # SpecForge's exports for SGLang name DeepSpec's architecture
        is_dspark = packaging is Packaging.DEEPSPEC or projector == "dspark"
        return Packaging.SPECFORGE if is_dspark and packaging is not Packaging.LFM2 else packaging
    if "Eagle3" in architecture:
        raise _refusal(EAGLE3, directory)
    if any(name.startswith("mtp.") for name in names):
        raise _refusal(MTP, directory)
    raise CheckpointError(
        f"{directory} is not a head that dspark knows: its architecture is {architecture}",
        "Is this the folder of a head, and not of a target?",
    )


def refuse_gguf(directory: Path) -> None:
    """Raises CheckpointError if the folder has GGUF files and no config.json."""
    if not (directory / "config.json").exists() and any(directory.glob("*.gguf")):
        raise _refusal(GGUF, directory)


def _has_sinks(raw: Mapping[str, Any], nested: Any, names: Collection[str]) -> bool:
    nested = nested if isinstance(nested, dict) else {}
    return bool(
        raw.get("attention_sink_bias")
        or nested.get("attention_sink_bias")
        or any("sink" in name for name in names)
    )


def _architecture(raw: Mapping[str, Any]) -> str:
    architectures = raw.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else "unknown"
    return str(first)[:80]


def _refusal(other: Elsewhere, directory: Path) -> CheckpointError:
    return CheckpointError(
        f"{directory} holds {other.what}, which dspark cannot run", other.engines
    )
