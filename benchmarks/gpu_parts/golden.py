"""The golden pairs of tests/conformance through the engine itself, against the reference's tokens.

A pair has target and head of a few layers, trained, so drafts are really accepted and refused.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dspark.config import EngineConfig, RuntimeConfig, SamplingConfig, ScheduleConfig, StopConfig
from dspark.engine.request import Request
from dspark.engine.session import Session, open_session
from dspark.events import Finished, Round
from dspark.hub import PairFiles
from dspark.progress import follow
from gpu_parts.setting import Record, Setting, attempt

GOLDEN = Path(__file__).parents[2] / "tests" / "conformance"
# led by the device where it can be; the last two by the host
VARIANTS = ("vanilla", "gated", "rnn", "dflash", "eagle3", "gemma4")
DTYPES = ("float32", "bfloat16")
SWITCHES = ("DSPARK_GRAPHS", "DSPARK_KERNELS")
SAMPLED = {"temperature": 0.9, "top_k": 20, "top_p": 0.9}
TINY_TOKENS = 5


def check_golden(setting: Setting) -> Iterator[Record]:
    switched = {name: os.environ[name] for name in SWITCHES if name in os.environ}
    pairs = [("vanilla", "float32")] if setting.is_tiny else [
        (variant, dtype) for variant in VARIANTS for dtype in DTYPES
    ]  # fmt: skip
    for variant, dtype in setting.cases(pairs):
        facts: Record = {"pair": variant, "dtype": dtype, **switched}
        yield attempt(facts, lambda v=variant, d=dtype: check_pair(setting, v, d))


def check_pair(setting: Setting, variant: str, dtype: str) -> Record:
    """`ok` in float32 asks for the reference's own tokens and rounds; in bf16, where near ties may
    be decided otherwise, that drafts and other requests change no token."""
    session = open_pair(variant, setting.device.type, dtype)
    cases = expected_cases(variant)[: 1 if setting.is_tiny else None]
    most = TINY_TOKENS if setting.is_tiny else None
    asks = [ask(case["prompt"], most or case["max_new_tokens"]) for case in cases]
    wanted = [case["ar"][len(case["prompt"]) :][:most] for case in cases]
    plain = [decode(session, [as_plain(each)])[0][0] for each in asks]
    alone, rounds = zip(*(decode(session, [each]) for each in asks), strict=True)
    alone = [texts[0] for texts in alone]
    record: Record = {
        "rounds": type(session.engine._rounds).__name__,
        "equal_until": min(map(common, plain, wanted)),
        "as_reference": plain == wanted,
        "drafts_change_nothing": alone == plain,
        "company_changes_nothing": decode(session, asks)[0] == plain,
        "accepted": sum(each.accepted for found in rounds for each in found),
    }
    if not setting.is_tiny:
        record["rounds_as_reference"] = all(
            accepted(found) == case["acceptance_lengths"]
            for found, case in zip(rounds, cases, strict=True)
        )
        record |= sampled(session, asks)
    exact = ["as_reference", "rounds_as_reference"] if dtype == "float32" else []
    if (
        record["rounds"] == "DeviceAndHostRounds"
    ):  # torch's own products depend on the number of rows
        exact += ["drafts_change_nothing", "company_changes_nothing", "seed_fixes_the_text"]
    return record | {"ok": all(record.get(name, True) for name in exact)}


def sampled(session: Session, asks: Sequence[Request]) -> Record:
    """With a seed, drafts and other requests change no token either."""
    hot = [
        ask(each.prompt_ids, each.stop.max_tokens or 0, seed=seed, **SAMPLED)
        for seed, each in enumerate(asks)
    ]
    plain = [decode(session, [as_plain(each)])[0][0] for each in hot]
    return {"seed_fixes_the_text": decode(session, hot)[0] == plain}


def expected_cases(variant: str) -> list[Record]:
    """Greedy runs of the reference implementation that verify whole blocks."""
    cases = json.loads((GOLDEN / variant / "expected.json").read_text("utf-8"))
    return [case for case in cases if not case["confidence_threshold"]]


def open_pair(variant: str, device: str, dtype: Any) -> Session:
    folder = GOLDEN / variant
    files = PairFiles(variant, folder / "target", folder / "draft")
    config = EngineConfig(schedule=ScheduleConfig("full"), max_requests=8)
    return follow(open_session(files, RuntimeConfig(device, dtype), config))


def ask(prompt: Sequence[int], max_tokens: int, **sampling: Any) -> Request:
    return Request(tuple(prompt), SamplingConfig(**sampling), StopConfig(max_tokens=max_tokens))


def as_plain(request: Request) -> Request:
    return Request(request.prompt_ids, request.sampling, request.stop, plain=True)


def decode(session: Session, requests: Sequence[Request]) -> tuple[list[list[int]], list[Round]]:
    """New tokens of each, decoded together, and all rounds."""
    ends: dict[int, Finished] = {}
    rounds: list[Round] = []
    for event in session.engine.run(requests):
        if isinstance(event, Finished):
            ends[event.request_id] = event
        if isinstance(event, Round):
            rounds.append(event)
    return [list(ends[index].token_ids) for index in sorted(ends)], rounds


def accepted(rounds: Sequence[Round]) -> list[int]:
    """Tokens that each round yields."""
    return [each.accepted + 1 for each in rounds]


def common(found: Sequence[int], wanted: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    pairs = enumerate(zip(found, wanted, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(found), len(wanted)))
