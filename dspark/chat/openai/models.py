"""The models of a server, and the choice of one for the chat."""

import difflib
from typing import Any

from dspark.chat.control_characters import one_line
from dspark.errors import InputError, ServerError

SHOWN_MODELS = 8
LIMITS = ("max_model_len", "context_length", "context_window", "max_context_length")
Models = dict[str, int]  # the context length, 0 if unknown


def read_models(listed: Any) -> Models:
    """From the response to /models. Raises ValueError if it is not a list of models."""
    models = listed.get("data") if isinstance(listed, dict) and "data" in listed else listed
    if not isinstance(models, list | None):
        raise ValueError("not a list of models")
    named = [each for each in models or [] if isinstance(each, dict) and each.get("id")]
    return {str(each["id"]): _limit(each) for each in named}


def _limit(model: dict[str, Any]) -> int:
    sizes = (model.get(name) for name in LIMITS)
    return next((size for size in sizes if isinstance(size, int) and size > 0), 0)


def choose_model(models: Models, wanted: str | None, url: str) -> tuple[str, int]:
    """The model's name and context length. Raises InputError if the server has no such model, or if
    a choice is needed."""
    if wanted is not None:
        limits = [limit for name, limit in models.items() if _is_meant(wanted, name)]
        if models and not limits:
            near = difflib.get_close_matches(wanted, models, n=1, cutoff=0.5)
            hint = f"Did you mean {one_line(near[0])}? " if near else ""
            raise InputError(f"{url} has no model {wanted}", f"{hint}It has {_listed(models)}.")
        return wanted, limits[0] if limits else 0
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
