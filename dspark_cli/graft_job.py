"""From the options of `dspark graft` to a training job."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from dspark.config import GraftConfig, PairChoice, RuntimeConfig, graft_config
from dspark.errors import InputError
from dspark_cli.loading import find_files

if TYPE_CHECKING:
    from dspark.graft.job import GraftJob

# options whose name differs from their field in GraftConfig
FIELDS: Mapping[str, str] = {
    "algo": "algorithm",
    "lr": "learning_rate",
    "distillation": "distillation_weight",
    "layers": "num_layers",
    "kv_heads": "num_kv_heads",
    "mask_token": "mask_token_id",
    "markov_share": "markov_learning_share",
    "tap_memory": "tap_memory_gib",
}


def training_job(params: Mapping[str, Any], base: str, given: list[str]) -> "GraftJob":
    """`params` are all options, `given` those on the command line. Fetches missing files.

    Raises InputError if the target cannot be trained for.
    """
    from dspark.checkpoints.heads import read_draft_config
    from dspark.graft.attach import check_name, released_head
    from dspark.graft.data.prompt_sources import PromptSource
    from dspark.graft.head.init_from_head import with_shape_of
    from dspark.graft.job import GraftJob
    from dspark.graft.judge.speedup import MEASUREMENT
    from dspark.hub.resolve import NO_DRAFT

    out = params["out"]
    if params["name"] is not None:
        check_name(params["name"], out)
    config = graft_settings(params)
    data = params["data"] or out / "answers.jsonl"
    source = PromptSource.parse(params["prompts"] or [], config, is_strict=params["strict"])
    if not params["prompts"] and not data.exists():
        raise InputError(f"there are no answers in {data}", "Give --prompts FILE or self.")
    files = find_files(replace(_choice(base), draft=params["init_from"] or NO_DRAFT))
    if files.draft is not None:
        shape = {FIELDS.get(name, name) for name in given}
        config = with_shape_of(config, read_draft_config(files.draft), shape)
    return GraftJob(
        base=replace(files, draft=None),
        source=source,
        data=data,
        out=out,
        config=config,
        runtime=RuntimeConfig(device=params["device"], dtype=params["dtype"]),
        init_from=files.draft,
        resume=params["resume"],
        tap_cache=params["tap_cache"],
        full_head=params["full_head"],
        measurement=MEASUREMENT if params["measure"] else None,
        released=released_head(base, files.target),
        licence=params["licence"],
        command=shlex.join(["dspark", *sys.argv[1:]]),
    )


def graft_settings(params: Mapping[str, Any]) -> GraftConfig:
    """An option that was not given is None and leaves the algorithm's default."""
    known = {field.name for field in fields(GraftConfig)}
    given_settings = {FIELDS.get(name, name): value for name, value in params.items()}
    settings = {name: value for name, value in given_settings.items() if name in known}
    algorithm = settings.pop("algorithm")
    chosen = settings | {"taps": parse_taps(params["taps"])}
    return graft_config(algorithm, params["loss"], **chosen)


def parse_taps(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--taps {text} is not a list of layers", "Write it like --taps 1,8,15."
        ) from None


def _choice(base: str) -> PairChoice:
    from dspark import hub
    from dspark.hub.catalog.find import FAMILIES

    is_name = base in FAMILIES or base in hub.PAIRS
    return PairChoice(base) if is_name else PairChoice(base, target=base)
