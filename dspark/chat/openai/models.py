"""The models of a server, and the choice of one for the chat."""

import difflib
from dataclasses import dataclass
from typing import Any

from dspark.chat.control_characters import one_line
from dspark.errors import InputError, ServerError
from dspark.round_records import VERSION

SHOWN_MODELS = 8
LIMITS = ("max_model_len", "context_length", "context_window", "max_context_length")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """`context_limit` is 0 if unknown. `has_drafter` is stated by a server that tells its rounds
    (docs/rounds.md), and None for any other."""

    context_limit: int = 0
    has_drafter: bool | None = None


Models = dict[str, ServedModel]


def read_models(listed: Any) -> Models:
    """From the response to /models. Raises ValueError if it is not a list of models."""
    models = listed.get("data") if isinstance(listed, dict) and "data" in listed else listed
    if not isinstance(models, list | None):
        raise ValueError("not a list of models")
    named = [each for each in models or [] if isinstance(each, dict) and each.get("id")]
    return {str(each["id"]): ServedModel(_limit(each), _has_drafter(each)) for each in named}


def _limit(model: dict[str, Any]) -> int:
    sizes = (model.get(name) for name in LIMITS)
    return next((size for size in sizes if isinstance(size, int) and size > 0), 0)


def _has_drafter(model: dict[str, Any]) -> bool | None:
    own = model.get("dspark")
    if not isinstance(own, dict) or own.get("rounds") != VERSION:
        return None
    return own.get("has_drafter") is True


def choose_model(models: Models, wanted: str | None, url: str) -> tuple[str, ServedModel]:
    """The model by its name. Raises InputError if the server has no such model, or if a choice is
    needed."""
    if wanted is not None:
        meant = [model for name, model in models.items() if _is_meant(wanted, name)]
        if models and not meant:
            near = difflib.get_close_matches(wanted, models, n=1, cutoff=0.5)
            hint = f"Did you mean {one_line(near[0])}? " if near else ""
            raise InputError(f"{url} has no model {wanted}", f"{hint}It has {_listed(models)}.")
        return wanted, meant[0] if meant else ServedModel()
    if not models:
        raise ServerError(f"{url} has no models", "Load one there first.")
    if len(models) > 1:
        raise InputError(f"{url} has several models: {_listed(models)}", "Choose one with --model.")
    return next(iter(models.items()))


def _is_meant(wanted: str, listed: str) -> bool:
    """Servers also accept a name with their own suffix, without :latest or without its folder."""
    names = (wanted, f"{wanted}:latest", wanted.partition(":")[0])
    return listed in names or listed.endswith(f"/{wanted}")


def _listed(models: Models) -> str:
    rest = len(models) - SHOWN_MODELS
    names = ", ".join(map(one_line, [*models][:SHOWN_MODELS]))
    return names + (f" and {rest} more" if rest > 0 else "")
