"""The command with which another engine serves a pair, and whether the installed version can."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from packaging.version import Version

from dspark.checkpoints.detect import Packaging
from dspark.errors import InputError, ServerError
from dspark.hub import find_pair
from dspark.hub.catalog.pairs import (
    HubRepo,
    LocalFolder,
    OtherPair,
    Pair,
)

EngineName = Literal["vllm", "sglang"]


@dataclass(frozen=True, slots=True)
class OtherEngine:
    """`since`: the first version known to run DSpark heads of each layout."""

    title: str
    port: int
    since: Mapping[Packaging, str]
    unknown_models: frozenset[str] = frozenset()


ENGINES: Mapping[EngineName, OtherEngine] = {
    "vllm": OtherEngine(
        "vLLM",
        8000,
        {
            Packaging.DEEPSPEC: "0.25.0",
            Packaging.SPECULATORS: "0.25.0",
            Packaging.IN_TARGET: "0.25.0",
            Packaging.SPECFORGE: "0.33.0",
        },
    ),
    "sglang": OtherEngine(
        "SGLang",
        30000,
        {
            Packaging.DEEPSPEC: "0.5.16",
            Packaging.IN_TARGET: "0.5.16",
            Packaging.SPECFORGE: "0.5.23",
            Packaging.LFM2: "0.5.23",
        },
        frozenset({"gemma4_unified"}),
    ),
}
V4_OPTIONS = (
    *("--kv-cache-dtype", "fp8", "--block-size", "256", "--enable-expert-parallel"),
    *("--tokenizer-mode", "deepseek_v4", "--tool-call-parser", "deepseek_v4"),
    *("--enable-auto-tool-choice", "--reasoning-parser", "deepseek_v4"),
)


def needed_version(pair: Pair, engine: EngineName) -> str:
    """Raises InputError if it is not established that the engine runs the pair."""
    other, head = ENGINES[engine], pair.head
    if head is None or head.algorithm != "dspark" or head.packaging not in other.since:
        what = (
            "its head" if head is None else f"{head.algorithm} heads in {head.packaging}'s layout"
        )
        raise InputError(
            f"it is not established that {other.title} runs {pair.name}: {what}",
            "Use another --engine, or a pair with a DSpark head (see dspark list).",
        )
    if pair.facts is not None and pair.facts.model_type in other.unknown_models:
        raise InputError(
            f"{other.title} does not run heads of {pair.facts.model_type}", "Use --engine vllm."
        )
    return other.since[head.packaging]


def serve_command(
    pair: Pair, engine: EngineName, *, num_gpus: int = 1, trusts_remote_code: bool = False
) -> tuple[str, ...]:
    """The command line that serves the pair."""
    needed_version(pair, engine)
    assert pair.head is not None, "needed_version has seen to it"
    is_own = pair.head.packaging is Packaging.IN_TARGET
    target, draft = _place(pair, "target"), None if is_own else _place(pair, "draft")
    block_size = pair.head.block_size  # beyond it acceptance collapses (vLLM's issue 41834)
    if block_size is None:
        raise InputError(
            f"the block size of {pair.name} is not established", "See its head's config.json."
        )
    trust = ("--trust-remote-code",) if trusts_remote_code else ()
    if engine == "vllm":
        settings: dict[str, object] = {"method": "dspark", "num_speculative_tokens": block_size}
        settings |= {"draft_sample_method": "probabilistic"} if is_own else {"model": draft}
        return (
            *("vllm", "serve", target, *trust, *(V4_OPTIONS if is_own else ())),
            *(("--tensor-parallel-size", str(num_gpus)) if num_gpus > 1 else ()),
            *("--speculative-config", json.dumps(settings)),
        )
    head = (
        *("--speculative-draft-model-path", str(draft)),
        *("--speculative-dspark-block-size", str(block_size)),
    )
    return (
        *("python", "-m", "sglang.launch_server", "--model-path", target, *trust),
        *(("--tp", str(num_gpus)) if num_gpus > 1 else ()),
        *("--speculative-algorithm", "DSPARK", *(() if is_own else head)),
    )


def check_installed(pair: Pair, engine: EngineName) -> None:
    """Raises ServerError if the engine is not installed next to dspark, or too old for the pair."""
    title, needed = ENGINES[engine].title, needed_version(pair, engine)
    hint = f"Install {engine}>={needed}, or run the output of --print where it is installed."
    try:
        installed_version = version(engine)
    except PackageNotFoundError:
        raise ServerError(f"{title} is not installed here", hint) from None
    if Version(installed_version) < Version(needed):
        raise ServerError(f"{title} {installed_version} is too old for {pair.name}", hint)


def _place(pair: Pair, role: Literal["target", "draft"]) -> str:
    source = pair.target if role == "target" else pair.draft
    if isinstance(source, OtherPair):
        return _place(find_pair(source.name), role)
    if isinstance(source, HubRepo):
        return source.repo_id
    if isinstance(source, LocalFolder):
        return str(source.path)
    raise InputError(
        f"the {role} of {pair.name} ships with dspark, so other engines cannot load it",
        "Chat with it here: dspark chat.",
    )
