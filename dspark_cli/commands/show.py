"""`dspark show`: a pair's files, sizes, licence and head."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspark_cli import options
from dspark_cli.naming import chosen_name
from dspark_cli.output.facts import print_json, size_text
from dspark_cli.output.tables import print_facts, wrapped

if TYPE_CHECKING:
    from dspark.hub import Pair

EXAMPLES = ("dspark show demo", "dspark show ./my-head --json")


def show(
    pair: options.PairArgument = None,
    pair_option: options.PairOption = None,
    as_json: options.Json = False,
) -> None:
    """Show a pair's files, sizes, licence and head."""
    from dspark.hub.settle import check_spelling

    name = options.one_pair(pair, pair_option)
    check_spelling(name)
    facts = _folder_facts(name) or _pair_facts(chosen_name(name))
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def _folder_facts(name: str) -> dict[str, Any] | None:
    """Of a path, or of an id in the Hugging Face cache; None for anything else."""
    from dspark import hub
    from dspark.hub.sources.gguf_target import gguf_file

    path = Path(name).expanduser()
    if hub.is_repo_id(name):
        folder = hub.kept_folder(name)
        if folder is None:
            return {"name": name, "target": None, "draft": None, "missing": _to_pull(name)}
    elif hub.known_pair(name) is None and (file := gguf_file(name)) is not None:
        return _gguf_facts(file)
    elif hub.known_pair(name) is None and path.is_dir():
        folder = path
    else:
        return None
    is_head = hub.is_head_folder(folder)
    has_head = is_head or hub.brings_head(folder)
    return {
        "name": name if hub.is_repo_id(name) else path.resolve().name,
        "target": None if is_head else _folder(folder),
        "draft": _head(folder) if has_head else None,
        "missing": "none: this is a head, which drafts for a target" if is_head else None,
    }


def _gguf_facts(file: Path) -> dict[str, Any]:
    from dspark.hub.sources.gguf_target import converted_folder

    folder = converted_folder(file)
    missing = f"{_place(_folder(file))}, converted when it is first used"
    return {
        "name": file.stem,
        "target": None if folder is None else _folder(folder),
        "draft": None,
        "missing": missing,
    }


def _pair_facts(name: str) -> dict[str, Any]:
    from dspark import hub

    files = hub.locate(name)
    known = hub.known_pair(name) if files else hub.find_pair(name)
    draft = hub.draft_folder(known) if known else None
    return {
        "name": files.name if files else name,
        **_registered(known),
        "target": _folder(files.target) if files else None,
        "draft": _head(draft) if draft else None,
        "missing": None if files else _gone(known) or _to_pull(name),
    }


def _to_pull(name: str) -> str:
    return f"not on disk; dspark pull {name} fetches it"


def _gone(pair: "Pair | None") -> str | None:
    """Why one of the user's own pairs cannot be fetched."""
    from dspark.hub.catalog.pairs import LocalFolder

    if pair is None:
        return None
    for source in (pair.target, pair.draft):
        if isinstance(source, LocalFolder) and not source.path.is_dir():
            return f"{source.path} is gone; move it back, or forget the pair: dspark rm {pair.name}"
    return None


def _registered(pair: "Pair | None") -> dict[str, Any]:
    from dspark import hub
    from dspark.hub.memory_fit import number_format, pair_footprint, pair_memory, rooms

    if pair is None:
        return {}
    room = rooms()[0]
    return {
        "description": pair.description,
        "licence": pair.licence,
        "num_parameters": pair.num_parameters,
        "memory_bytes": pair_memory(pair, room),
        "runs_on": {"device": room.device, "dtype": number_format(pair_footprint(pair), room)},
        "download_bytes": hub.download_bytes(pair),
        "published_head": _published(pair),
        "origins": dict(pair.origins),
    }


def _published(pair: "Pair") -> str | None:
    from dspark.hub.catalog.pairs import HubRepo

    if pair.head is None or not isinstance(pair.draft, HubRepo):
        return None
    return f"{pair.draft.repo_id} ({pair.head.algorithm}, layout {pair.head.packaging})"


def _folder(path: Path) -> dict[str, Any]:
    from dspark import hub

    return {"path": str(path), "bytes": hub.folder_bytes(path)}


def _head(path: Path) -> dict[str, Any]:
    from dspark.checkpoints.dspark_config import calibrated_for
    from dspark.checkpoints.heads import count_head_parameters, read_any_config
    from dspark.graft.judge.speedup import read_measured

    config = read_any_config(path)
    return {
        **_folder(path),
        "num_parameters": count_head_parameters(path),
        "block_size": config.block_size,
        "num_layers": config.num_layers,
        "target_layer_ids": list(config.target_layer_ids),
        "verdict": (read_measured(path) or {}).get("verdict"),
        "markov_type": config.markov_type,
        "markov_rank": config.markov_rank,
        "has_confidence": config.has_confidence,
        "calibration": calibrated_for(config),
    }


def _print(facts: dict[str, Any]) -> None:
    name, target, head = facts["name"], facts["target"], facts["draft"]
    print(wrapped(f"{name}: {facts['description']}" if "description" in facts else name))
    rows = {
        "licence": facts.get("licence"),
        "parameters": _count(facts.get("num_parameters")),
        "memory": _memory(facts),
        "target": _place(target) if target else facts["missing"],
        "head": _place(head) if head else facts.get("published_head") or "none",
    }
    if head:
        rows |= {
            "head parameters": _count(head["num_parameters"]),
            "block size": head["block_size"],
            "taps": f"layers {', '.join(map(str, head['target_layer_ids']))}",
            "markov": f"{head['markov_type']}, rank {head['markov_rank']}",
            "confidence": "yes" if head["has_confidence"] else "no",
            "calibration": head["calibration"],
            "verdict": head["verdict"],
        }
    rows |= {f"origin of {key}": text for key, text in facts.get("origins", {}).items()}
    print_facts(rows)


def _memory(facts: dict[str, Any]) -> str | None:
    needed, where = facts.get("memory_bytes"), facts.get("runs_on")
    if needed is None or where is None:
        return None
    how = where["dtype"]
    place = f"{where['device']} {how if how.startswith('as ') else f'in {how}'}"
    return f"{size_text(needed)} on {place}, with a context of 4,096 tokens"


def _place(folder: dict[str, Any]) -> str:
    return f"{folder['path']} ({size_text(folder['bytes'])})"


def _count(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"
