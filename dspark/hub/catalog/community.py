"""Pairs with heads published by others, if their layout is established."""

from dspark.checkpoints.detect import Packaging
from dspark.hub.catalog.pairs import (
    HeadFacts,
    HubRepo,
    Pair,
    TargetFacts,
)

QWEN3_4B = TargetFacts("qwen3", 2560, 36, 151_936, 1024)
QWEN3_8B = TargetFacts("qwen3", 4096, 36, 151_936, 1024)
SHAPES = "computed from the tensors' shapes, stored as bfloat16"
NAME = "about, by the model's name, in bfloat16"
NOT_ESTABLISHED = "not established"


def _pair(
    name: str,
    target: str,
    head: str,
    head_facts: HeadFacts,
    origin: str,
    *,
    facts: TargetFacts | None = None,
    licence: str | None = None,
    num_parameters: int | None = None,
    num_bytes: int | None = None,
    head_bytes: int | None = None,
) -> Pair:
    return Pair(
        name=name,
        description=f"{target.partition('/')[2]} with {head.partition('/')[0]}'s head.",
        licence=licence,
        target=HubRepo(target, num_bytes=num_bytes, licence=licence),
        draft=HubRepo(head, num_bytes=head_bytes),
        num_parameters=num_parameters,
        target_num_bytes=num_bytes,
        origins={
            "licence": "the target's model card" if licence else NOT_ESTABLISHED,
            "target": "by the name of the head's repository",
            "draft": origin,
            "target_num_bytes": SHAPES if num_parameters else NAME,
            "num_parameters": SHAPES if num_parameters else NOT_ESTABLISHED,
        },
        facts=facts,
        head=head_facts,
    )


SPECULATORS = "the hub; the layout is that of the speculators library"
COMMUNITY = (
    _pair(
        "qwen3-8b:speculators",
        "Qwen/Qwen3-8B",
        "mgoin/Qwen3-8B-speculator.dspark",
        HeadFacts("dspark", Packaging.SPECULATORS),
        SPECULATORS,
        facts=QWEN3_8B,
        licence="Apache-2.0",
        num_parameters=8_190_735_360,
        num_bytes=16_381_470_720,
    ),
    _pair(
        "qwen3-4b:z-lab",
        "Qwen/Qwen3-4B",
        "z-lab/Qwen3-4B-DFlash-b16",
        HeadFacts("dflash", Packaging.DFLASH, 16),
        "the hub; the layout is that of z-lab's DFlash",
        facts=QWEN3_4B,
        licence="Apache-2.0",
        num_parameters=4_022_468_096,
        num_bytes=8_044_936_192,
    ),
    _pair(
        "qwen3-8b:z-lab",
        "Qwen/Qwen3-8B",
        "z-lab/Qwen3-8B-DFlash-b16",
        HeadFacts("dflash", Packaging.DFLASH, 16),
        "the hub; the size was measured by others",
        facts=QWEN3_8B,
        licence="Apache-2.0",
        num_parameters=8_190_735_360,
        num_bytes=16_381_470_720,
        head_bytes=2_097_259_104,
    ),
    _pair(
        "qwen3.6-35b-a3b",
        "Qwen/Qwen3.6-35B-A3B",
        "RedHatAI/Qwen3.6-35B-A3B-speculator.dspark",
        HeadFacts("dspark", Packaging.SPECULATORS, 8, (2, 10, 20, 30, 37)),
        SPECULATORS,
        num_bytes=70_000_000_000,
    ),
    _pair(
        "qwen3.8-27b",
        "Qwen/Qwen3.8-27B",
        "RadixArk/Qwen3.8-27B-DSpark",
        HeadFacts("dspark", Packaging.SPECFORGE, 7),
        "the hub; the layout is that of SpecForge and SGLang",
        num_bytes=54_000_000_000,
    ),
    _pair(
        "lfm2.5-1.2b",
        "LiquidAI/LFM2.5-1.2B-Instruct",
        "LiquidAI/LFM2.5-1.2B-Instruct-DSpark",
        HeadFacts("dspark", Packaging.LFM2, 9),
        "the hub; the layout is LiquidAI's own",
        num_bytes=2_400_000_000,
    ),
)
