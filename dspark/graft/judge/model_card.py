"""The model card of a trained head: OUT/README.md, from the figures in OUT."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from safetensors import safe_open

from dspark import hub
from dspark.atomic import replacing
from dspark.checkpoints.head_config import HeadConfig
from dspark.checkpoints.heads import SHARED_WITH_TARGET, read_draft_config
from dspark.checkpoints.model_folder import count_parameters, read_config
from dspark.config import ALGORITHMS
from dspark.errors import StorageError
from dspark.graft.judge.speedup import read_measured
from dspark.graft.train.metrics import Line, of_kind, read_metrics
from dspark.hub.catalog.pairs import PairFiles
from dspark.plural import counted

SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<revision>[^/]+)$")


@dataclass(frozen=True, slots=True)
class Base:
    """Identity of a base: its hub id and revision if it came from the hub, and a hash."""

    name: str
    revision: str | None
    sha256: str
    is_alias: bool

    @classmethod
    def of(cls, files: PairFiles) -> "Base":
        digest = hashlib.sha256()
        for path in sorted(files.target.glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        snapshot = SNAPSHOT.search(files.target.as_posix())
        if snapshot:
            name = f"{snapshot['owner']}/{snapshot['name']}"
            return cls(name, snapshot["revision"], digest.hexdigest(), is_alias=False)
        return cls(files.name, None, digest.hexdigest(), hub.known_pair(files.name) is not None)


def write_card(out: Path, base: Base, licence: str) -> Path:
    path = out / "README.md"
    try:
        with replacing(path) as partial:
            partial.write_text(card_text(out, base, licence), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"could not write {path} ({error})", "Free some space and run the same command again."
        ) from error
    return path


def card_text(out: Path, base: Base, licence: str) -> str:
    config, graft = read_draft_config(out), read_config(out).get("graft", {})
    calibrations = of_kind(read_metrics(out / "training" / "metrics.jsonl"), "calibration")
    measured = read_measured(out) or {}
    title = ALGORITHMS[config.algorithm].title
    verdict = f"\n**{measured['verdict']}**\n" if "verdict" in measured else ""
    sections = [
        f"---\n{_front_matter(base, config.algorithm, licence)}\n---",
        f"# {'An' if title[0] in 'EM' else 'A'} {title} head for {base.name}\n"
        f"Drafts up to {counted(config.block_size, 'token')} at once for {base.name}, which checks "
        "them in one pass: the output is the base's own, token for token. Trained with dspark.\n"
        f"{verdict}",
        "## What it is\n" + _table(_shape(out, config, base, title)),
        "## Data\n" + _table(_data(graft)),
        "## Training\n" + _table(_training(graft)),
        "## Figures\n" + _figures(graft, calibrations, measured),
        "## Use\n" + _use(out, config, base),
        "## Limits\n" + _limits(config, base),
    ]
    return "\n\n".join(part.rstrip() for part in sections) + "\n"


def _front_matter(base: Base, algorithm: str, licence: str) -> str:
    data = ModelCardData(
        base_model=base.name,
        library_name="dspark",
        license=licence,
        tags=["speculative-decoding", "draft-model", algorithm],
    )
    return data.to_yaml()


def _shape(out: Path, config: HeadConfig, base: Base, title: str) -> Iterable[tuple[str, Any]]:
    yield "base", base.name
    yield "revision of the base", base.revision
    yield "sha256 over the hashes of the base's weight files", f"`{base.sha256}`"
    yield "algorithm", title
    yield "parameters", f"{count_parameters(out):,}"
    yield "block", counted(config.block_size, "token")
    yield (
        "layers",
        f"{config.num_layers} of width {config.hidden_size}, {counted(config.num_heads, 'head')}",
    )
    yield "taps", f"outputs of the base's layers {_numbers(config.target_layer_ids)} (from 0)"
    if config.has_mask:
        is_none = config.markov_type == "none"
        yield (
            "Markov head",
            "none" if is_none else f"{config.markov_type}, rank {config.markov_rank}",
        )
        yield "confidence head", "yes" if config.has_confidence else "no"
        yield "mask token", config.mask_token_id


def _data(graft: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    data = graft.get("data", {})
    yield "answers trained on", _count(graft.get("answers"))
    yield "answers held out", _count(data.get("held_out"))
    yield "written by", "the base itself (on-policy)"
    yield "prompts", ", ".join(data.get("prompts", ())) or None
    yield "temperature of the answers", data.get("temperature")
    yield "maximum tokens per answer", data.get("max_answer_tokens")


def _training(graft: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    yield "steps", _count(graft.get("steps"))
    yield "tokens seen", _count(graft.get("tokens"))
    yield "seed", graft.get("seed")
    for name, value in graft.get("settings", {}).items():
        yield f"{name.replace('_', ' ')} (not the default)", value
    for name, version in graft.get("versions", {}).items():
        yield name, version


def _figures(
    graft: Mapping[str, Any], calibrations: Sequence[Line], measured: Mapping[str, Any]
) -> str:
    rates = graft.get("acceptance_by_position", ())
    rows: list[tuple[str, Any]] = [
        (
            "accepted length τ, greedy, whole blocks verified",
            f"{graft['tau_greedy']:.2f} on "
            f"{counted(graft['held_out_prompts'], 'held-out prompt')} "
            f"({counted(graft['rounds'], 'round')})",
        ),
        ("acceptance by position, once reached", _numbers(f"{rate:.2f}" for rate in rates)),
        *_measured_rows(measured),
    ]
    return "\n".join([_table(rows), *_calibrations(calibrations)])


def _measured_rows(measured: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    if not measured:
        return
    trials, machine, settings = (
        measured["speedup_trials"],
        measured["machine"],
        measured["settings"],
    )
    yield (
        "tokens per second, of plain decoding",
        f"{measured['speedup']:.2f} × ({min(trials):.2f} to {max(trials):.2f} in "
        f"{counted(len(trials), 'trial')} of {counted(settings['prompts'], 'held-out prompt')} × "
        f"{counted(settings['max_tokens'], 'token')})",
    )
    place = (
        machine["gpu"] or f"{machine['processor']}, {counted(machine['torch_threads'], 'thread')}"
    )
    yield "measured on", f"{place}, {settings['dtype']}, {measured['date']}"
    yield "output", _output(measured["identical"])
    for each in measured["categories"]:
        yield f"on {each['category']}", f"{each['speedup']:.2f} ×, τ {each['tau']:.2f}"
    if measured["released"]:
        tau, released = measured["held_out"]["tau"], measured["released"]["tau"]
        yield (
            "τ, and the released head's, on the same prompts",
            f"{tau:.2f}, the released one's {released:.2f} (it may have been trained on them)",
        )


def _output(is_identical: bool | None) -> str:
    if is_identical is None:
        return "sampled, not compared"
    return "identical to plain decoding's" if is_identical else "differs from plain decoding's"


def _calibrations(lines: Sequence[Line]) -> list[str]:
    """Of the last line."""
    return [
        _calibration(line[kind], title)
        for line in lines[-1:]
        for kind, title in (("sampled", "at temperature 1"), ("greedy", "of greedy answers"))
    ]


def _calibration(line: Line, title: str) -> str:
    fit = line["calibration"]
    header = (
        f"\nConfidences {title}, over {counted(line['rounds'], 'round')} of prompts outside the "
        "fit (ECE is the expected calibration error of the survival):\n"
    )
    rows = [
        f"| {place} | {shift:+.2f} | {temperature:.2f} | {before['ece']:.1%} | {after['ece']:.1%} "
        f"| {after['noise']:.1%} | {_share(before['auc'])} | {_share(after['auc'])} |"
        for place, (shift, temperature, before, after) in enumerate(
            zip(fit["shifts"], fit["temperatures"], line["before"], line["after"], strict=True),
            start=1,
        )
    ]
    head = [
        "| position | shift | temperature | ECE before | after | of a perfect head "
        "| AUC before | after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([header, *head, *rows])


def _use(out: Path, config: HeadConfig, base: Base) -> str:
    target = base.name if base.is_alias else f"--target {base.name}"
    lines = ["With `HEAD` for the folder of this head:", "```"]
    lines.append(f"dspark chat {target} --draft HEAD")
    lines += [f"python eval.py --target_name_or_path {base.name} --draft_name_or_path HEAD", "```"]
    lines += ["The second line is DeepSpec's."]
    if config.has_mask and config.markov_type in ("none", "vanilla"):
        speculative = (
            f'{{"method":"dspark","model":"HEAD","num_speculative_tokens":{config.block_size}}}'
        )
        lines += [
            "vLLM and SGLang, on a GPU, if they serve the base with its taps:",
            "```",
            f"vllm serve {base.name} --speculative-config '{speculative}'",
            f"python -m sglang.launch_server --model-path {base.name} --speculative-algorithm "
            "DSPARK --speculative-draft-model-path HEAD --speculative-dspark-block-size "
            f"{config.block_size}",
            "```",
        ]
    with safe_open(out / "model.safetensors", framework="np") as file:
        is_whole = set(SHARED_WITH_TARGET) <= set(file.keys())
    if not is_whole:
        lines.append(
            "The base's embedding and output head are not in the file: dspark and vLLM take them "
            "from the base, DeepSpec needs them stored (`dspark graft` without `--lean-head`)."
        )
    return "\n".join([*lines, "Only dspark was run with this head."])


def _limits(config: HeadConfig, base: Base) -> str:
    lines = [
        f"- It drafts for {base.name} alone: with other weights or another tokenizer its drafts "
        "are rejected more often, or all of them.",
        "- It changes how fast an answer comes, never the answer; the base's errors stay wrong.",
        "- Prompts unlike those above, other languages and higher temperatures gain less.",
        f"- Drafting reaches up to {config.max_positions:,} tokens of context, and was trained on "
        "shorter ones.",
    ]
    return "\n".join(lines)


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    """None is left out."""
    lines = [f"| {name} | {value} |" for name, value in rows if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines])


def _numbers(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _count(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
