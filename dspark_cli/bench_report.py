"""A bench from names to a measured report: one pair or several heads, under every condition."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from dspark.bench.config import BenchConfig
from dspark.config import EngineConfig, PairChoice, RuntimeConfig
from dspark.errors import InputError
from dspark_cli.bench_run import follow_bench
from dspark_cli.drafters import open_drafters
from dspark_cli.loading import find_files, open_files

if TYPE_CHECKING:
    from dspark.bench.conditions import Condition
    from dspark.bench.floor import Floor
    from dspark.bench.heads import OpenHeads
    from dspark.bench.peers.against import Against
    from dspark.bench.peers.arm import PeerArm
    from dspark.bench.report_document import Measured
    from dspark.bench.sections import Section
    from dspark.bench.suites import PromptSet
    from dspark.engine.session import Session
    from dspark.hub.catalog.pairs import PairFiles

Engine = Literal["transformers", "llama.cpp"]
Thinking = Literal["on", "off", "both"]
SWITCH: Mapping[Thinking, tuple[bool, ...]] = {
    "on": (True,),
    "off": (False,),
    "both": (True, False),
}


@dataclass(frozen=True, slots=True)
class Work:
    """The prompts and settings of a measurement."""

    prompts: "PromptSet"
    config: BenchConfig
    runtime: RuntimeConfig
    engine: EngineConfig


@dataclass(frozen=True, slots=True)
class Conditions:
    """Those asked for; `is_full` takes all that the model knows, and lookup beside its head."""

    temperatures: tuple[float, ...] = ()
    depths: tuple[int, ...] = ()
    thinking: Thinking | None = None
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class Peers:
    """Other engines, with the GGUF that llama.cpp reads."""

    engines: tuple[Engine, ...] = ()
    gguf: Path | None = None


def engines_of(names: Sequence[str]) -> tuple[Engine, ...]:
    """Each once. Raises InputError for an engine that is not known."""
    known = {name: name for name in get_args(Engine)}
    for name in names:
        if name not in known:
            raise InputError(
                f"--against {name} is not known", f"Write one of {' or '.join(known)}."
            )
    return tuple(dict.fromkeys(known[name] for name in names))


def command_line() -> str:
    return shlex.join(["dspark", *sys.argv[1:]])


def measure_pair(
    choice: PairChoice, work: Work, wanted: Conditions, peers: Peers
) -> tuple["Measured", int]:
    """With the number of conditions asked for."""
    files = find_files(choice, work.runtime)
    with open_files(files, work.runtime, work.engine) as session:
        from dspark.bench.heads import pair_heads
        from dspark.bench.report_document import Measured

        opened = pair_heads(session, files.draft, with_lookup=wanted.is_full)
        conditions = _conditions(session, work.config, wanted)
        sections = _sections(opened, work, conditions, is_timed=True)
        is_whole = len(sections) == len(conditions) and not sections[-1].comparison.is_partial
        against = _against(session, files, work, peers) if peers.engines and is_whole else None
        measured = Measured(
            sections,
            opened,
            work.prompts,
            _floor(session, files),
            _revisions(files),
            against,
            is_pair=len(opened.heads) == 1,
        )
    return measured, len(conditions)


def measure_heads(
    choice: PairChoice,
    heads: Mapping[str, str],
    work: Work,
    wanted: Conditions,
    *,
    is_tau_only: bool,
) -> tuple["Measured", int]:
    """Several heads on one target."""
    with open_drafters(choice, heads, work.runtime, work.engine) as opened:
        from dspark.bench.report_document import Measured

        conditions = _conditions(opened.plain, work.config, wanted)
        sections = _sections(opened, work, conditions, is_timed=not is_tau_only)
        measured = Measured(sections, opened, work.prompts, None, {}, None, is_pair=False)
    return measured, len(conditions)


def _sections(
    opened: "OpenHeads", work: Work, conditions: Sequence["Condition"], *, is_timed: bool
) -> "tuple[Section, ...]":
    from dspark.bench.sections import run_sections

    items = run_sections(opened, work.prompts.texts, work.config, conditions, is_timed=is_timed)
    return follow_bench(items, is_timed=is_timed)


def _conditions(
    session: "Session", config: BenchConfig, wanted: Conditions
) -> "tuple[Condition, ...]":
    from dspark.bench.conditions import (
        FULL_TEMPERATURES,
        check_depths,
        conditions,
        fitting_depths,
    )

    has_switch = session.tokenizer is not None and session.tokenizer.has_thinking_switch
    if wanted.thinking is not None and not has_switch:
        raise InputError(
            f"{session.name}'s chat template has no switch for thinking", "Leave out --thinking."
        )
    thinking: Sequence[bool | None] = SWITCH[wanted.thinking] if wanted.thinking else ()
    temperatures, depths = wanted.temperatures, wanted.depths
    if wanted.is_full:
        temperatures = temperatures or FULL_TEMPERATURES
        depths = depths or fitting_depths(config.max_tokens, session.context_limit)
        thinking = thinking or (SWITCH["both"] if has_switch else ())
    check_depths(depths, config.max_tokens, session.context_limit)
    return conditions(config.sampling, temperatures, depths, thinking)


def _floor(session: "Session", files: "PairFiles") -> "Floor | None":
    """None if the weights' sizes cannot be read from the folder."""
    from dspark.bench.floor import measure_floor

    if not files.target.is_dir():
        return None
    runtime = session.runtime
    return measure_floor(files.target, runtime.dtype, runtime.device)


def _revisions(files: "PairFiles") -> dict[str, str | None]:
    from dspark.bench.revisions import revisions

    return revisions(files)


def _against(session: "Session", files: "PairFiles", work: Work, peers: Peers) -> "Against":
    from dspark.bench.encode import encode_prompts
    from dspark.bench.peers.against import run_against
    from dspark.bench.peers.arm import our_arms

    prompts = [each.token_ids for each in encode_prompts(session, work.prompts.texts)]
    with ExitStack() as stack:
        arms = our_arms(session)
        for engine in peers.engines:
            arms += stack.enter_context(_peer_arms(engine, session, files, peers.gguf))
        config = work.config
        return follow_bench(run_against(arms, prompts, config.trials, config.max_tokens))


@contextmanager
def _peer_arms(
    engine: Engine, session: "Session", files: "PairFiles", gguf: Path | None
) -> Iterator["list[PeerArm]"]:
    if engine == "transformers":
        from dspark.bench.peers.worker_process import transformers_arm

        device = session.runtime.device
        dtypes = ("float32", "bfloat16") if device == "cpu" else (session.runtime.dtype,)
        with ExitStack() as stack:
            yield [
                stack.enter_context(transformers_arm(files.target, device, dtype))
                for dtype in dtypes
            ]
        return
    import torch

    from dspark.bench.peers.llama_server import LlamaServer, find_binary, llama_arms

    assert gguf is not None, "checked with the options"
    server = LlamaServer(find_binary(), gguf, torch.get_num_threads())
    with llama_arms(server) as arms:
        yield arms
